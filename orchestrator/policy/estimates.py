"""Estimates of costs, acceptance rates and expected tokens, from observed steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

from orchestrator.policy.config import MAX_DRAFT_LENGTH
from orchestrator.step import StepRecord


class CostFilter:
    """Estimates costs from observations of their sums.

    A Kalman filter (1960): the error of a predicted sum is distributed over the costs, most of it
    to the least certain ones. So the first difference between steps with and without the draft is
    attributed to the draft, and later changes among steps of one kind to the machine.

    Args:
        errors: initial standard deviation of each cost, as a share of the first observation.
        drifts: standard deviation of its change between two observations, as a share of the sum.
        slope: initial value of the second cost; None: the whole first observation is its.
    """

    def __init__(
        self, errors: Sequence[float], drifts: Sequence[float], slope: float | None
    ) -> None:
        self.costs = [0.0] * len(errors)
        self._errors, self._drifts, self._slope = errors, drifts, slope
        self._covariance: list[list[float]] = []

    def observe(self, counts: Sequence[float], took_ns: float, share: float = 1.0) -> None:
        """Learns from something that took `took_ns` and incurred cost i `counts[i]` times.

        `share` is the weight of the observation, below 1 if others report the same event.
        """
        if not self._covariance:
            slope = took_ns / counts[1] if self._slope is None else self._slope
            self.costs[:2] = max(0.0, took_ns - slope * counts[1]), slope
            self._covariance = [[0.0] * len(counts) for _ in counts]
            for i, error in enumerate(self._errors):
                self._covariance[i][i] = (error * took_ns / max(1.0, counts[i])) ** 2
        covariance, expected_ns = self._covariance, max(1.0, sum(map(mul, self.costs, counts)))
        for i, drift in enumerate(self._drifts):
            covariance[i][i] += share * (drift * expected_ns / max(1.0, counts[i])) ** 2
        spread = [sum(map(mul, row, counts)) for row in covariance]
        variance = sum(map(mul, spread, counts)) + (0.1 * expected_ns) ** 2 / share
        surprise_ns = took_ns - expected_ns
        # Beyond three standard deviations it counts less (P. J. Huber, 1964).
        variance *= max(1.0, abs(surprise_ns) / (3.0 * variance**0.5))
        for i, each in enumerate(spread):
            gain = each / variance
            self.costs[i] = max(0.0, self.costs[i] + gain * surprise_ns)
            covariance[i] = [a - gain * b for a, b in zip(covariance[i], spread, strict=True)]

    def forget(self, index: int, share: float) -> None:
        """Takes a share of a cost away, and makes the rest as much less certain."""
        if self._covariance:
            forgotten_ns = share * self.costs[index]
            self.costs[index] -= forgotten_ns
            error_ns = math.sqrt(self._covariance[index][index]) + forgotten_ns
            self._covariance[index][index] = error_ns**2

    def doubt(self, ns: float) -> None:
        """Makes it uncertain by `ns` how the sum of the first and third cost is divided."""
        for i, j, sign in ((0, 0, 1), (2, 2, 1), (0, 2, -1), (2, 0, -1)):
            self._covariance[i][j] += sign * ns**2


@dataclass
class Acceptance:
    """An estimated acceptance rate, and the number of tokens, `weight`, that it is based on."""

    rate: float
    weight: float
    decay: float

    def bound(self, num_deviations: float) -> float:
        """The rate plus so many standard deviations of its estimate."""
        variance = self.rate * (1 - self.rate) / self.weight
        return min(1.0, self.rate + num_deviations * math.sqrt(max(0.0, variance)))

    def observe(self, step: StepRecord) -> None:
        was_rejected = step.num_accepted_tokens < step.num_draft_tokens
        accepted = self.decay * self.weight * self.rate + step.num_accepted_tokens
        self.weight = self.decay * self.weight + step.num_accepted_tokens + was_rejected
        self.rate = accepted / self.weight


def best_length(rate: float, price: float) -> int:
    """The length of the longest draft whose last token is accepted with probability > `price`."""
    length, gain = 0, rate
    while length < MAX_DRAFT_LENGTH and gain > price:
        length, gain = length + 1, gain * rate
    return length


def expected_tokens(rate: float, length: float) -> float:
    """The expected number of committed tokens of a step (arXiv 2211.17192)."""
    rate = min(rate, 0.999)
    return float((1 - rate ** (length + 1)) / (1 - rate))
