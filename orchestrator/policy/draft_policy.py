"""What the loop asks the draft policy once a step, and the simplest policy: a fixed length."""

from dataclasses import dataclass
from typing import Protocol

from orchestrator.policy.cost_model import PairState
from orchestrator.step import DraftState, StepRecord


@dataclass(frozen=True, slots=True)
class StepContext:
    """What is known when a step begins."""

    draft: DraftState
    is_pipelined: bool = False
    """The target already works on this step's draft tokens."""
    is_running_ahead: bool = False
    """The target already decodes what follows, without draft tokens."""

    @property
    def has_draft(self) -> bool:
        """Whether there is a draft that can be asked."""
        return self.draft not in (DraftState.ABSENT, DraftState.LOST)


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether, how much and how long to draft or wait in one step. Lengths are in tokens."""

    drafts: bool = False
    """The draft works; otherwise it is idle."""
    predraft_length: int = 0
    """How many tokens to draft for each outcome, and to take of what was predrafted."""
    miss_length: int = 0
    """How many tokens to wait for on a cache miss."""
    cache_wait_ns: float = 0.0
    """How long to wait for a predraft that is under way when a result comes."""
    lookup_length: int = 0
    """How many tokens to take from the text, at most."""
    confirmed_lookup_length: int = 0
    """The same where the draft has predrafted the first of them, too."""
    shortest_lookup: int = 1
    """Fewer are not worth it."""
    acceptance_rate: float = 0.0
    """Acceptance rate to report to the draft; 0: unknown."""
    keeps_up: bool = False
    """The draft reads the prompt with the target even if it does not draft yet."""
    runs_ahead: bool = False
    """The target may run ahead behind this step, if it has no draft tokens."""
    pipelines: bool = False
    """The next verification may be sent before this one's result is known."""
    pipeline_wait_ns: float = 0.0
    """How long after this verification was sent the next one may be held back for a longer
    predraft, without the target waiting for it."""


class DraftPolicy(Protocol):
    """Decides for one text."""

    def decide(self, context: StepContext) -> Decision:
        """Called once a step, when it begins, the first one (the prefill) included."""
        ...

    def observe(self, step: StepRecord) -> None:
        """Called once a step, when its result is there."""
        ...


@dataclass(frozen=True)
class FixedLength:
    """The same draft length at every step; 0: the target alone. Other texts learn from it."""

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
            confirmed_lookup_length=length,
            acceptance_rate=pair.acceptance.rate,
            runs_ahead=is_alone and (pair.shares_passes or pair.has_high_latency),
            pipelines=length > 0 and pair.has_high_latency,
            pipeline_wait_ns=pair.pipeline_wait_ns(context.is_pipelined),
        )

    def observe(self, step: StepRecord) -> None:
        self.pair.observe(step, self.length)
