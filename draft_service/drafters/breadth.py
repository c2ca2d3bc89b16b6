"""How many outcomes of a verification are worth preparing for.

Each more is a chance more that the verdict finds its continuation, but every pass over
them takes longer, and what is not drafted when the verdict comes is worth nothing. So
it depends on the time that there is: on one machine a verification may leave time for
two passes, behind a slow network for ten.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from outrider.engine.chunk import Chunk

# A draft token is worth so much of the one before it, which must be accepted first.
_NEXT = 0.6
# What a branch must bring, in accepted tokens a step.
_LEAST_WORTH = 0.01
# What the latest window counts.
_LATEST = 0.2
_REPEATS = 3


class Passes(Protocol):
    """What is measured of an engine."""

    def forward(self, chunks: Sequence[Chunk]) -> Any: ...


@dataclass(frozen=True, slots=True)
class StepTime:
    """What a draft step takes, in nanoseconds: with one branch, and more with each further.

    0 stands for unknown; then every branch is thought to be worth it.
    """

    first_ns: float = 0.0
    further_ns: float = 0.0

    def of(self, num_branches: int) -> float:
        return self.first_ns + (num_branches - 1) * self.further_ns


def measure_step_time(engine: Passes, max_branches: int) -> StepTime:
    """By passes over one slot and over `max_branches` of them."""
    first_ns = _best_ns(engine, 1)
    if max_branches < 2:
        return StepTime(first_ns)
    all_ns = _best_ns(engine, max_branches)
    return StepTime(first_ns, max(0.0, (all_ns - first_ns) / (max_branches - 1)))


def _best_ns(engine: Passes, num_branches: int) -> float:
    """Of the best of some passes: whatever else runs can only make them longer."""
    chunks = [Chunk(slot, 0, [0], 1) for slot in range(num_branches)]
    durations = []
    for _ in range(_REPEATS):
        began = time.perf_counter_ns()
        engine.forward(chunks)
        durations.append(time.perf_counter_ns() - began)
    return float(min(durations))


class Breadth:
    """Chooses the number of branches for one session, by the time its verifications leave."""

    def __init__(self, step_time: StepTime) -> None:
        self._step_time = step_time
        self._window_ns: float | None = None

    def choose(self, chances: Sequence[float], num_tokens: int) -> int:
        """How many of the outcomes to prepare for.

        Args:
            chances: of each outcome, first that all draft tokens are accepted, then of
                corrections, likeliest first.
            num_tokens: how many tokens are wanted after each.
        """
        if self._window_ns is None or self._step_time == StepTime():
            return len(chances)
        best, best_worth = 0, 0.0
        for count in range(1, len(chances) + 1):
            worth = self._worth(chances[:count], num_tokens)
            if worth > best_worth + (count - best) * _LEAST_WORTH:
                best, best_worth = count, worth
        return best

    def _worth(self, chances: Sequence[float], num_tokens: int) -> float:
        """Draft tokens that will be there and be accepted, on average."""
        if not chances:
            return 0.0
        num_passes = (self._window_ns or 0.0) / max(1.0, self._step_time.of(len(chances)))
        accepted, *corrections = chances
        # Behind all draft tokens, the first pass guesses the target's own.
        return _NEXT * accepted * _accepted_tokens(min(num_tokens, num_passes - 1)) + sum(
            chance * _accepted_tokens(min(num_tokens, num_passes)) for chance in corrections
        )

    def observe(self, elapsed_ns: int, num_branches: int, num_passes: int, is_done: bool) -> None:
        """Learns what a verification left.

        Args:
            elapsed_ns: from its beginning to the request that followed.
            num_passes: over the branches in that time; others may have had some, too.
            is_done: whether more passes were not wanted.
        """
        window_ns = float(elapsed_ns)
        if num_branches and not is_done:
            window_ns = min(window_ns, (num_passes + 0.5) * self._step_time.of(num_branches))
        before = window_ns if self._window_ns is None else self._window_ns
        self._window_ns = before + _LATEST * (window_ns - before)


def _accepted_tokens(num_tokens: float) -> float:
    """What so many draft tokens are worth, in tokens that are accepted.

    A token that is half drafted by then on average is there in time less than half the time.
    """
    whole = int(max(0.0, num_tokens))
    part = max(0.0, num_tokens) - whole
    return float(sum(_NEXT**i for i in range(1, whole + 1)) + part**2 * _NEXT ** (whole + 1))
