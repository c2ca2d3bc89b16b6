"""Steps: the draft's state, the origin of draft tokens, and the step record."""

from dataclasses import dataclass
from enum import Enum

from outrider.protocol.messages import Timings
from outrider.protocol.stages import Stage


class DraftState(Enum):
    """What the draft is doing for one text."""

    ABSENT = "absent"
    """There is no draft."""
    IDLE = "idle"
    """It does no work, and may not have read recent tokens, or any of the text."""
    PREFILLING = "prefilling"
    """It is reading the text for the first time."""
    CATCHING_UP = "catching up"
    """It is reading the tokens that were committed while it was idle."""
    ACTIVE = "active"
    """It predrafts, or waits for requests."""
    LOST = "lost"
    """It failed; the text continues without it until it is available again."""


class DraftSource(Enum):
    """The source of a step's draft tokens."""

    NONE = "none"
    LOOKUP = "looked up"
    """Prompt lookup in the text itself."""
    CACHED = "predrafted"
    """The speculation cache: a cache hit."""
    DRAFTED = "drafted"
    """A proposal, for which the loop waited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOrigin:
    """The circumstances in which the draft tokens of a step were chosen."""

    is_cache_miss: bool = False
    """The draft predrafted, but there was no predraft for this outcome in time."""
    is_pipelined: bool = False
    """The draft tokens were sent to the target before the previous result was known."""
    replaces_stale: bool = False
    """A pipelined request for this step was stale."""
    match_length: int = 0
    """For prompt lookup: how many of the last tokens matched; 0: no prompt lookup."""
    hidden_draft_ns: int = 0
    """Duration of the draft's forward passes for these tokens, minus the loop's wait for them."""


@dataclass(frozen=True, slots=True)
class DraftTokens(DraftOrigin):
    """The draft tokens of one step, possibly none, and their origin."""

    token_ids: tuple[int, ...] = ()
    source: DraftSource = DraftSource.NONE


NO_DRAFT = DraftTokens()


@dataclass(frozen=True, slots=True)
class Wait:
    """An interval in which the loop only waited for a service.

    `stage` is the service's work. `timings`, which the service reports for the awaited message,
    separate it from queue and network. Without them the whole wait is attributed to `stage`.
    """

    stage: Stage
    began_ns: int
    ended_ns: int
    timings: Timings | None = None

    @property
    def ns(self) -> int:
        return self.ended_ns - self.began_ns


@dataclass(frozen=True, slots=True)
class StepRecord(DraftOrigin):
    """One step of the loop: what it did, what it committed, and how long it took.

    All reports, metrics and spans are made from step records, and the draft policy learns from
    them. Times are in nanoseconds.
    """

    token_ids: tuple[int, ...]
    """The committed tokens: accepted draft tokens, then one token of the target's own."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    source: DraftSource = DraftSource.NONE
    draft_state: DraftState = DraftState.ABSENT
    """The draft's state during the verification."""
    is_prefill: bool = False
    """Whether it is the first step, in which the target reads the prompt."""
    is_run_ahead: bool = False
    """The target decoded the token without a request."""
    is_predrafting: bool = False
    """The draft predrafted during the verification."""
    draft_ns: int = 0
    """Time spent waiting for a proposal, the draft's prefill excluded."""
    cache_wait_ns: int = 0
    """Time spent waiting for a predraft that had been started, successfully or not."""
    verify_ns: int = 0
    """Time spent waiting for the verify result."""
    server_ns: int = 0
    """Time that the target took; part of `verify_ns`, unless the verification was pipelined."""
    batch_tokens: int = 0
    """Tokens in the target's forward pass, including other sessions' tokens; 0: unknown."""
    batch_sessions: int = 1
    num_target_threads: int = 0
    num_predrafted_tokens: int = 0
    """Tokens predrafted in this text so far, for all outcomes."""
    began_ns: int = 0
    ended_ns: int = 0
    """On the clock of `time.perf_counter_ns`."""
    waits: tuple[Wait, ...] = ()
    """In order of time; between them the orchestrator worked."""
    hidden_prefill_ns: int = 0
    """Duration of the draft's prefill, if it ended in this step, minus the loop's wait for it."""

    @property
    def seconds(self) -> float:
        """All of its time."""
        return (self.ended_ns - self.began_ns) / 1e9

    @property
    def ns(self) -> int:
        """Time spent waiting for proposal, predraft and verify result."""
        return self.draft_ns + self.cache_wait_ns + self.verify_ns
