"""The interface of draft policies, and the simplest one: a fixed draft length."""

from dataclasses import dataclass
from typing import Protocol

from orchestrator.policy.cost_model import PairState, Plan
from orchestrator.step import DraftState, StepRecord
from outrider.protocol.messages import PolicyEstimates


@dataclass(frozen=True, slots=True)
class StepContext:
    """What the policy is told at the beginning of a step."""

    draft: DraftState
    is_pipelined: bool = False
    """The target is already verifying this step's draft tokens."""
    is_running_ahead: bool = False
    """The target is running ahead."""

    @property
    def has_draft(self) -> bool:
        """Whether there is a draft that can work."""
        return self.draft not in (DraftState.ABSENT, DraftState.LOST)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether, how much and how long to draft or wait in one step. Lengths are in tokens."""

    drafts: bool = False
    """Whether the draft works in this step; otherwise it is idle."""
    predrafts: bool = True
    """Whether the draft, if it works, predrafts while the target verifies."""
    predraft_length: int = 0
    """How many tokens to predraft for each outcome, and the most to take from a predraft."""
    miss_length: int = 0
    """Draft length of the proposal to wait for on a cache miss; 0: do not wait."""
    cache_wait_ns: float = 0.0
    """How long to wait for a predraft that has been started but has no token yet."""
    lookup_length: int = 0
    """The most tokens to take from prompt lookup."""
    shortest_lookup: int = 1
    """The fewest tokens from prompt lookup that are worth verifying."""
    acceptance_rate: float = 0.0
    """Acceptance rate to report to the draft; 0: unknown."""
    keeps_up: bool = False
    """The draft reads the prompt concurrently with the target, even if `drafts` is false."""
    runs_ahead: bool = False
    """The target may run ahead after this step, if the step has no draft tokens."""
    pipelines: bool = False
    """The next verification may be sent before this one's result is known."""
    pipeline_wait_ns: float = 0.0
    """How long the next request may be held back for a longer predraft, counted from when the loop
    begins to wait for this step's result."""


class DraftPolicy(Protocol):
    """Makes the decisions for one text."""

    def decide(self, context: StepContext) -> Decision:
        """The decision for a step. Called at the beginning of every step, the prefill included."""
        ...

    def observe(self, step: StepRecord) -> None:
        """Learns from a step. Called at the end of every step."""
        ...

    def estimates(self) -> PolicyEstimates | None:
        """Why the draft works, or is idle; None if the policy does not decide that."""
        ...


@dataclass(frozen=True)
class FixedLength:
    """The same draft length in every step; 0: the target alone.

    Its steps are observed by `pair`, from which adaptive policies of other texts learn.
    """

    pair: PairState
    length: int

    def decide(self, context: StepContext) -> Decision:
        pair, length = self.pair, self.length
        is_alone = length == 0 or not context.has_draft
        return Decision(
            drafts=length > 0,
            predraft_length=length,
            miss_length=length,
            cache_wait_ns=pair.draft_ns(1),  # asking takes no less
            lookup_length=length,
            acceptance_rate=pair.acceptance.rate,
            runs_ahead=is_alone and pair.runs_ahead,
            pipelines=length > 0 and pair.has_high_latency,
            pipeline_wait_ns=pair.pipeline_wait_ns(context.is_pipelined),
        )

    def observe(self, step: StepRecord) -> None:
        self.pair.observe(step, Plan(0.0, self.length, self.length))

    def estimates(self) -> None:
        return None
