"""The messages between engine, services and decode loop.

Frozen dataclasses that need neither torch nor protobuf, so that every process can import them.
`outrider.protocol.codec` converts them to and from protobuf.
"""

from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import Self

from outrider.protocol.hidden_states import HiddenStates, HiddenStateSpec

WIRE_VERSION = 2
"""The version of the semantics of a session's messages; see GetModelInfoResponse."""

# Limit on the draft tokens of a step, each of which takes a row of the target's logits.
MAX_NUM_SPECULATIVE_TOKENS = 64

# Limit on the outcomes of a verification to predraft for.
MAX_NUM_PREDRAFTS = 64


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen from logits; see `outrider.sampling.sampler`."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def excludes_tokens(self) -> bool:
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


GREEDY = SamplingParams()


@dataclass(frozen=True, slots=True)
class Timings:
    """Server-side durations for one message, in nanoseconds, and the size of its last pass."""

    queue_ns: int = 0
    forward_ns: int = 0
    sample_ns: int = 0
    total_ns: int = 0
    batch_tokens: int = 0
    batch_sessions: int = 0
    num_threads: int = 0


@dataclass(frozen=True, slots=True)
class Proposal:
    """Draft tokens after the first `context_length` tokens."""

    context_length: int
    draft_token_ids: tuple[int, ...]
    sequence_length: int
    timings: Timings = Timings()


@dataclass(frozen=True, slots=True)
class PredraftPlan:
    """For how many outcomes of a verification to predraft, and how many tokens for each.

    With `is_limit` the draft chooses the number, up to `num_predrafts`, from `acceptance_rate`
    (0: unknown).
    """

    num_predrafts: int = 0
    num_tokens: int = 0
    is_limit: bool = False
    acceptance_rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Predraft:
    """Draft tokens for one outcome of a verification.

    They follow the first `context_length` tokens and `assumed_token_ids`: accepted draft tokens,
    then the target's own. `forward_ns` is the duration of its forward passes so far.
    """

    context_length: int
    assumed_token_ids: tuple[int, ...]
    draft_token_ids: tuple[int, ...]
    forward_ns: int = 0


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """The result of verifying draft tokens after the first `context_length` tokens.

    If `is_bonus`, all draft tokens were accepted and `next_token_id` is the bonus token; otherwise
    it is the recovered token.
    """

    context_length: int
    num_accepted_tokens: int
    next_token_id: int
    is_bonus: bool
    sequence_length: int
    timings: Timings = Timings()
    is_run_ahead: bool = False
    """Whether the target decoded the token without a request."""
    hidden_states: HiddenStates | None = None
    """Those of tokens that the pass read and the session holds, if the session asked for them."""


@dataclass
class SpeculationStats:
    """Counts of the decode loop; see SpeculationStats in the protocol."""

    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    acceptance_histogram: list[int] = field(default_factory=list)
    num_cache_hits: int = 0
    num_cache_hit_accepted_tokens: int = 0
    num_predrafted_tokens: int = 0
    num_lookup_steps: int = 0
    num_lookup_draft_tokens: int = 0
    num_lookup_accepted_tokens: int = 0
    num_pipelined_steps: int = 0
    num_stale_steps: int = 0
    num_cache_misses: int = 0
    num_idle_steps: int = 0
    num_active_steps: int = 0

    def add(self, other: Self) -> None:
        """Adds another's counts to these."""
        for each in fields(self):
            mine, others = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, list):
                sums = [a + b for a, b in zip_longest(mine, others, fillvalue=0)]
                setattr(self, each.name, sums)
            else:
                setattr(self, each.name, mine + others)

    @property
    def draft_acceptance_rate(self) -> float:
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        return 1 + self.num_accepted_tokens / self.num_steps if self.num_steps else 0.0


@dataclass(frozen=True, slots=True)
class PolicyEstimates:
    """What the draft policy estimated; see PolicyEstimates in the protocol."""

    acceptance_rate: float = 0.0
    sufficient_acceptance_rate: float = 0.0
    target_step_ns: int = 0
    slowdown_ns: int = 0
    draft_token_ns: int = 0


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A token and the text that it completed.

    `source` is "draft" or "lookup", whose tokens the target accepted, or "target".
    """

    text: str
    token_id: int
    source: str


@dataclass(frozen=True, slots=True)
class Outage:
    """Why a service cannot be used, and since when: milliseconds since 1970, UTC."""

    address: str
    reason: str
    since_ms: int


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval of a request's trace; see TraceInterval."""

    track: str
    lane: str
    name: str
    begin_ns: int
    duration_ns: int
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchInvariance:
    """Whether a token's logits are bit-identical in every pass that may compute them.

    `max_tokens`: passes were compared up to this many tokens, and have no more; 0: no limit.
    `across_threads`: logits are also the same for every number of threads that may be used.
    """

    holds: bool
    max_tokens: int = 0
    across_threads: bool = False

    def __str__(self) -> str:
        if not self.holds:
            return "no"
        return f"in passes of up to {self.max_tokens} tokens" if self.max_tokens else "yes"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a draft or target service serves. Fields as in GetModelInfoResponse."""

    model_id: str
    max_context_length: int
    vocab_size: int
    vocabulary_fingerprint: str = ""
    eos_token_ids: tuple[int, ...] = ()
    num_slots: int = 0
    num_free_slots: int = 0
    dtype: str = ""
    device: str = ""
    revision: str = ""
    version: str = ""
    token_ns: int = 0
    wire_version: int = WIRE_VERSION
    num_threads: int = 0
    batch_invariance: BatchInvariance | None = None
    reads_hidden_states: HiddenStateSpec | None = None
    num_layers: int = 0
    hidden_size: int = 0
    gives_hidden_states: bool = False
    max_cached_tokens: int = 0
    num_cached_tokens: int = 0
    step_ns: int = 0


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer, as services send it: `tokenizer.json`, chat template, named special tokens."""

    tokenizer_json: str
    chat_template: str | None
    special_tokens: dict[str, str]
