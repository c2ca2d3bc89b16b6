"""The fan-out: for how many outcomes of a verification to predraft, and when.

Each further outcome raises the probability of a cache hit, but makes every pass longer, and tokens
that are not drafted before the result arrives are worthless. So the best number depends on the
time available: a verification may leave time for two passes on one machine, and for ten over a
slow network.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from outrider.engine.chunk import Chunk
from outrider.engine.scheduling.batch_limits import Passes, best_seconds

# The acceptance rate if it is unknown; and the lowest one that is assumed, since only predrafts
# can show that a draft has become better.
_USUAL_ACCEPTANCE = 0.6
_LEAST_ACCEPTANCE = 0.25
# The minimum worth of a further outcome, in accepted tokens per step.
_LEAST_WORTH = 0.01
# The share of the time between two requests that choosing and sending tokens takes.
_ON_THE_WAY = 0.1
# The weight of the latest observation in the averages.
_LATEST = 0.5


@dataclass(frozen=True, slots=True)
class StepTime:
    """The time of a draft step: for one predraft, and for each further one. In nanoseconds.

    0: unknown; then every outcome counts as worthwhile.
    """

    first_ns: float = 0.0
    further_ns: float = 0.0

    def of(self, num_predrafts: int) -> float:
        return self.first_ns + (num_predrafts - 1) * self.further_ns


UNKNOWN_STEP_TIME = StepTime()


def measure_step_time(engine: Passes, max_predrafts: int) -> StepTime:
    """Measures passes over one slot and over `max_predrafts` slots."""
    chunks = [Chunk(slot, 0, [0], 1) for slot in range(max(1, max_predrafts))]
    first_ns = 1e9 * best_seconds(engine, chunks[:1])
    if len(chunks) == 1:
        return StepTime(first_ns)
    all_ns = 1e9 * best_seconds(engine, chunks)
    return StepTime(first_ns, max(0.0, (all_ns - first_ns) / (len(chunks) - 1)))


@dataclass(frozen=True, slots=True)
class Depth:
    """How many tokens to draft for each outcome, and their acceptance rate.

    `acceptance_rate` 0: unknown.
    """

    num_tokens: int
    acceptance_rate: float = 0.0

    @property
    def rate(self) -> float:
        return max(_LEAST_ACCEPTANCE, self.acceptance_rate or _USUAL_ACCEPTANCE)

    def worth(self, num_passes: float) -> float:
        """The expected number of accepted tokens of a predraft after `num_passes` passes.

        A fraction of a pass counts for less than itself: a token whose pass is expected to be
        half done is finished in less than half of the cases.
        """
        length = max(0.0, min(self.num_tokens, num_passes))
        whole = int(length)
        part = length - whole
        drafted = sum(self.rate**i for i in range(1, whole + 1))
        return float(drafted + part**2 * self.rate ** (whole + 1))


@dataclass(frozen=True, slots=True)
class Plan:
    """The initial outcomes to predraft for: whether full acceptance, and how many corrections.

    More may be added once the bonus token has been guessed.
    """

    accepted: bool
    num_corrections: int


class FanOut:
    """Chooses the outcomes to predraft for, from the times of the session's verifications.

    Chances are probabilities according to the draft. Those of corrections are in descending order.
    """

    def __init__(self, step_time: StepTime) -> None:
        self._step_time = step_time
        self._slowness = 1.0  # of passes now: the target may use the same cores or memory
        # The time of verifications by their number of draft tokens, and of the current one.
        self._windows_ns: dict[int, float] = {}
        self._window_ns: float | None = None

    def plan(
        self, num_draft_tokens: int, accepted: float, corrections: Sequence[float], depth: Depth
    ) -> Plan:
        """The outcomes to predraft for at the beginning of a verification.

        Args:
            accepted: the chance that all draft tokens are accepted.
            corrections: the chances of the corrections for which there are slots.
            depth: of the predrafts.
        """
        known = min(self._windows_ns, key=lambda other: abs(other - num_draft_tokens), default=None)
        self._window_ns = None if known is None else self._windows_ns[known]
        if self._window_ns is None or self._step_time == UNKNOWN_STEP_TIME:
            return Plan(accepted=True, num_corrections=len(corrections))
        guess = accepted * depth.rate

        def at_once(count: int) -> float:
            passes = self._num_passes(1 + count)
            corrected = sum(corrections[:count]) * depth.worth(passes)
            return guess * depth.worth(passes - 1) + corrected

        def later(count: int) -> float:
            passes = self._num_passes(1 + count, self._slowness * self._step_time.of(1))
            return (guess + sum(corrections[:count])) * depth.worth(passes)

        now, now_worth = _best(at_once, len(corrections))
        _, later_worth = _best(later, len(corrections))
        if max(now_worth, later_worth) < _LEAST_WORTH:
            return Plan(accepted=False, num_corrections=0)
        if later_worth >= now_worth:
            return Plan(accepted=True, num_corrections=0)
        return Plan(accepted=True, num_corrections=now)

    def further(self, guess: float, others: Sequence[float], depth: Depth, spent_ns: int) -> int:
        """How many outcomes to add once the bonus token has been guessed.

        Args:
            guess: the chance that all draft tokens are accepted and the guess is right.
            others: the chances of other guesses and of corrections, in descending order.
            spent_ns: how long the verification has taken so far.
        """
        if self._window_ns is None or self._step_time == UNKNOWN_STEP_TIME:
            return len(others)

        def worth(count: int) -> float:
            passes = self._num_passes(1 + count, spent_ns)
            return (guess + sum(others[:count])) * depth.worth(passes)

        return _best(worth, len(others))[0]

    def has_time(self, num_predrafts: int, spent_ns: int) -> bool:
        """Whether a pass over `num_predrafts` slots would end before the result arrives.

        If it did not, it would delay the draft's answer to the next request.
        """
        if self._window_ns is None or self._step_time == UNKNOWN_STEP_TIME:
            return True
        return self._num_passes(num_predrafts, spent_ns) >= 1

    def _num_passes(self, num_predrafts: int, spent_ns: float = 0.0) -> float:
        """How many passes would end before the result arrives."""
        left_ns = (self._window_ns or 0.0) - spent_ns
        return max(0.0, left_ns) / max(1.0, self._slowness * self._step_time.of(num_predrafts))

    def note_pass(self, num_predrafts: int, took_ns: int) -> None:
        """Learns the time of a pass over `num_predrafts` slots."""
        expected_ns = self._step_time.of(num_predrafts)
        if expected_ns:
            self._slowness += _LATEST * (took_ns / expected_ns - self._slowness)

    def observe(self, num_draft_tokens: int, elapsed_ns: int, was_served: bool) -> None:
        """Learns the time of a verification of `num_draft_tokens` draft tokens.

        Args:
            elapsed_ns: from its beginning to the next request.
            was_served: whether any pass in that time included this session.
        """
        window_ns = (1 - _ON_THE_WAY) * elapsed_ns if was_served else 0.0
        before = self._windows_ns.get(num_draft_tokens, window_ns)
        self._windows_ns[num_draft_tokens] = before + _LATEST * (window_ns - before)


EVERY_OUTCOME = FanOut(UNKNOWN_STEP_TIME)
"""Predrafts for as many outcomes as there are slots."""


def _best(worth: Callable[[int], float], most: int) -> tuple[int, float]:
    """The number of outcomes, from 0 to `most`, that is worth most, and its worth."""
    best, best_worth = 0, worth(0)
    for count in range(1, most + 1):
        found = worth(count)
        if found > best_worth + (count - best) * _LEAST_WORTH:
            best, best_worth = count, found
    return best, best_worth
