"""How much a pass should do on this machine, found by measuring passes when the model loads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from outrider.engine.chunk import Chunk

# A full pass takes at most so many times as long as a step of some sessions, who wait for
# the tokens of prompts that share their passes. Fewer tokens would leave prompts no room
# beside steps and draft tokens.
LONGEST_PASS = 2.5
_STEP_TOKENS = 8

# A prompt that has the engine for itself is read in chunks so many times as large.
ALONE = 4

_BUDGETS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_REPEATS = 2
# Where steps are replayed and wide passes are not, the narrowest of these takes several steps
# whatever it holds, and one of so many times as long is worth its tokens.
_LONGEST_UNRECORDED_PASS = 1.5
# What a token more costs is the difference of two short passes, and other programs (the other
# model of a pair, which is loaded at the same time) make either longer: they take turns.
_TURNS = 4

# A pass waits for one more session as long as a pass of a single token takes, divided by
# this: with the session it costs little more, without it a pass of its own.
_GATHERINGS = 16
_SHORTEST_GATHERING = 0.001


class Passes(Protocol):
    """What is measured of an engine."""

    @property
    def max_context_length(self) -> int: ...

    def forward(self, chunks: Sequence[Chunk]) -> Any: ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a scheduler aims at."""

    token_budget: int = 256
    """Tokens of a pass: steps of sessions that run, and chunks of prompts in what is left."""
    gather_seconds: float = 0.001
    """How long a pass waits for one more session, as long as sessions keep arriving."""
    token_seconds: float = 0.0
    """What a token more costs a pass of a few; 0 if unknown."""
    max_tokens: int = 0
    """No pass has more: up to so many, bits have been found not to depend on it. 0: no limit."""

    @property
    def widest(self) -> int:
        """Tokens of the widest pass: of a prompt that has the engine for itself."""
        most = ALONE * self.token_budget
        return min(most, self.max_tokens) if self.max_tokens else most


def measure_batch_limits(engine: Passes, replays_steps: bool = False) -> BatchLimits:
    """The widest pass that takes no more than LONGEST_PASS times as long as a step.

    Args:
        replays_steps: short passes are recorded.
    """
    num_tokens = min(_STEP_TOKENS, engine.max_context_length)  # which are at least two
    turns = [(_seconds(engine, 1), _seconds(engine, num_tokens)) for _ in range(_TURNS)]
    shortest, step = (min(seconds) for seconds in zip(*turns, strict=True))
    chosen, limit = _BUDGETS[0], LONGEST_PASS * step
    if replays_steps and chosen <= engine.max_context_length:
        limit = max(limit, _LONGEST_UNRECORDED_PASS * _seconds(engine, chosen))
    for budget in _BUDGETS:
        if budget > engine.max_context_length or _seconds(engine, budget) > limit:
            break
        chosen = budget
    token_seconds = max(0.0, step - shortest) / (num_tokens - 1)
    return BatchLimits(chosen, max(_SHORTEST_GATHERING, shortest / _GATHERINGS), token_seconds)


def _seconds(engine: Passes, num_tokens: int) -> float:
    return best_seconds(engine, [Chunk(0, 0, [0] * num_tokens, 1)])


def best_seconds(engine: Passes, chunks: Sequence[Chunk]) -> float:
    """Of the best of some passes: whatever else runs can only make them longer."""
    durations = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        engine.forward(chunks)
        durations.append(time.perf_counter() - began)
    return min(durations)
