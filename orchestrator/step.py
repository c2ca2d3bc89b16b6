"""What a step is: the state of its draft, where its draft tokens came from, and its record."""

from dataclasses import dataclass
from enum import Enum

from outrider.protocol.messages import Timings


class DraftState(Enum):
    """What the draft of one text does while the target verifies."""

    ABSENT = "absent"
    """There is none."""
    IDLE = "idle"
    """It does no work, and may lack recent tokens or the whole text."""
    PREFILLING = "prefilling"
    """It reads the prompt."""
    CATCHING_UP = "catching up"
    """It reads what was committed while it was idle."""
    ACTIVE = "active"
    """It predrafts, or waits to be asked."""
    LOST = "lost"
    """It failed; the text goes on without it, unless it is restarted."""


class DraftSource(Enum):
    """Where the draft tokens of a step came from."""

    NONE = "none"
    LOOKUP = "looked up"
    """The text itself: prompt lookup."""
    CACHED = "predrafted"
    """The speculation cache: a cache hit."""
    DRAFTED = "drafted"
    """A proposal that was waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOrigin:
    """How the draft tokens of a step came about, or why there are none."""

    is_cache_miss: bool = False
    """The draft predrafted, but this outcome was not ready."""
    is_pipelined: bool = False
    """They were sent to the target before the previous result was known."""
    replaces_stale: bool = False
    """The pipelined request before them was stale."""
    match_length: int = 0
    """Of tokens that were looked up: how many tokens before them matched."""
    is_confirmed: bool = False
    """Of tokens that were looked up: the draft had predrafted the first of them, too."""
    hidden_draft_ns: int = 0
    """Time of the draft's forward passes for these tokens that the loop did not wait for."""


@dataclass(frozen=True, slots=True)
class DraftTokens(DraftOrigin):
    """The draft tokens of one step, possibly none, and where they came from."""

    token_ids: tuple[int, ...] = ()
    source: DraftSource = DraftSource.NONE


NO_DRAFT = DraftTokens()


@dataclass(frozen=True, slots=True)
class Wait:
    """An interval in which the loop did nothing but wait for a service.

    `timings`, reported by the service for the awaited message, split the wait into network, queue
    and computation; without them all of it is booked on `stage`.
    """

    stage: str
    began_ns: int
    ended_ns: int
    timings: Timings | None = None

    @property
    def ns(self) -> int:
        return self.ended_ns - self.began_ns


@dataclass(frozen=True, slots=True)
class StepRecord(DraftOrigin):
    """One step of the loop: what it did, what it brought, and what it took.

    All reports, metrics and spans are made of it, and the draft policy learns from it. Times are
    nanoseconds.
    """

    token_ids: tuple[int, ...]
    """What it committed: accepted draft tokens, then the target's own."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    source: DraftSource = DraftSource.NONE
    draft_state: DraftState = DraftState.ABSENT
    """During the verification."""
    is_prefill: bool = False
    """The first step, which reads the prompt."""
    is_run_ahead: bool = False
    """The target decoded it without a request."""
    draft_ns: int = 0
    """Time waited for the proposal; the draft's prefill does not count."""
    cache_wait_ns: int = 0
    """Time waited for a predraft that was under way, whether it came in time or not."""
    verify_ns: int = 0
    """Time waited for the result."""
    server_ns: int = 0
    """Time at the target: part of `verify_ns`, unless the verification was pipelined."""
    batch_tokens: int = 0
    """Tokens in the verification's forward pass, those of other sessions included; 0: unknown."""
    batch_sessions: int = 1
    num_target_threads: int = 0
    num_predrafted_tokens: int = 0
    """In this text so far, for all outcomes."""
    began_ns: int = 0
    ended_ns: int = 0
    """On the clock of `time.perf_counter_ns`."""
    waits: tuple[Wait, ...] = ()
    """In order; between them the orchestrator worked."""
    hidden_prefill_ns: int = 0
    """Time of the draft's prefill that the loop did not wait for."""

    @property
    def seconds(self) -> float:
        """All of its time."""
        return (self.ended_ns - self.began_ns) / 1e9

    @property
    def ns(self) -> int:
        """Time waited for proposal, predraft and verification."""
        return self.draft_ns + self.cache_wait_ns + self.verify_ns
