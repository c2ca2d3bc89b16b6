"""The batch limits of this machine, measured when the model is loaded."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from torch import Tensor

from outrider.engine.attention.rope import Rope
from outrider.engine.chunk import Chunk
from outrider.engine.soundness import Result
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice

# A full pass takes at most this many times as long as a step of a few sessions, which are delayed
# by the tokens of prompts in their passes. If it were shorter, steps and draft tokens would leave
# no room for prompts.
LONGEST_PASS = 2.5
_STEP_TOKENS = 8

# A prompt that has the engine to itself is read in chunks that are this many times as large.
ALONE = 4

_BUDGETS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_REPEATS = 2
# If steps are replayed and wide passes are not, even the narrowest wide pass takes as long as
# several steps; then a pass that takes this many times as long as that is acceptable.
_LONGEST_UNRECORDED_PASS = 1.5
# The marginal cost of a token is the difference of two short passes. Other programs may slow down
# either (the other model of a pair is loaded at the same time), so they alternate.
_TURNS = 4

# How long a pass waits for one more session: the time of a pass of one token, divided by this.
# With that session it takes little longer; otherwise the session needs a separate pass.
_GATHERINGS = 16
_SHORTEST_GATHERING = 0.001


class Passes(Protocol):
    """An engine, as its scheduler and the measurements here see it."""

    @property
    def max_context_length(self) -> int: ...

    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor]: ...

    def choose(
        self, chunks: Sequence[Chunk], specs: Sequence[SamplingSpec], num_steps: int
    ) -> list[list[list[Choice]]] | list[Tensor]:
        """The choices after each chunk; or its logits, if the engine does not choose."""
        ...

    @property
    def rope(self) -> Rope: ...

    def clear_unsound(self, chunks: Sequence[Chunk], results: Sequence[Result]) -> list[bool]:
        """See `soundness.clear_unsound`."""
        ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How many tokens a pass may have, and how long it waits for more."""

    token_budget: int = 256
    """The most tokens in a pass: steps of running sessions first, then chunks of prompts."""
    gather_seconds: float = 0.001
    """How long a pass waits for each further session."""
    token_seconds: float = 0.0
    """The marginal cost of a token in a short pass; 0: unknown."""
    step_seconds: float = 0.0
    """The time of a pass of one token; 0: unknown."""
    max_tokens: int = 0
    """The most tokens in a pass for which logits are batch-invariant; 0: no limit."""

    @property
    def widest(self) -> int:
        """The most tokens in a pass of a prompt that has the engine to itself."""
        most = ALONE * self.token_budget
        return min(most, self.max_tokens) if self.max_tokens else most


def measure_batch_limits(engine: Passes, replays_steps: bool = False) -> BatchLimits:
    """Measures passes. The widest one takes at most LONGEST_PASS times as long as a step.

    Args:
        replays_steps: whether short passes are recorded passes.
    """
    num_tokens = min(_STEP_TOKENS, engine.max_context_length)  # at least two
    turns = [(_seconds(engine, 1), _seconds(engine, num_tokens)) for _ in range(_TURNS)]
    shortest, step = (min(seconds) for seconds in zip(*turns, strict=True))
    limit = LONGEST_PASS * step
    budgets = [budget for budget in _BUDGETS if budget <= engine.max_context_length]
    if replays_steps and budgets:
        limit = max(limit, _LONGEST_UNRECORDED_PASS * _seconds(engine, budgets[0]))
    fast = takewhile(lambda budget: _seconds(engine, budget) <= limit, budgets)
    widest = max(fast, default=_BUDGETS[0])
    token_seconds = max(0.0, step - shortest) / (num_tokens - 1)
    gather_seconds = max(_SHORTEST_GATHERING, shortest / _GATHERINGS)
    return BatchLimits(widest, gather_seconds, token_seconds, step_seconds=shortest)


def _seconds(engine: Passes, num_tokens: int) -> float:
    return best_seconds(engine, [Chunk(0, 0, [0] * num_tokens, 1)])


def best_seconds(engine: Passes, chunks: Sequence[Chunk]) -> float:
    """The time of the fastest of several passes, since other programs can only slow them down."""
    durations = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        engine.forward(chunks)
        durations.append(time.perf_counter() - began)
    return min(durations)
