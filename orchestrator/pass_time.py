"""What a pass of the target takes, told apart by what makes it longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

# All as shares of what a pass takes. How much one differs from the next, how far the machine
# drifts from one to the next, and how far the other costs do.
_NOISE = 0.1
_DRIFT = 0.03
_TOKEN_DRIFT = 0.002
_BESIDE_DRIFT = 0.003
# What a draft that works beside may cost; what a token more may cost where nothing is known, and
# by how much a cost that was measured beforehand may be wrong.
_BESIDE = 0.3
_TOKEN = 0.2
_TOKEN_ERROR = 0.05
# A pass that is further from what was expected counts less, in proportion (P. J. Huber, 1964).
_MOST_DEVIATIONS = 3.0


@dataclass
class PassTime:
    """A pass of some tokens, beside a draft that works or rests, in nanoseconds.

    A Kalman filter (R. E. Kalman, 1960) of three costs that add up: the pass itself, each of
    its tokens, and the draft's work beside it. Any step tells their sum, and it takes both
    kinds to tell them apart: what changes between two of a kind is first taken for the
    machine's, and the first difference between the kinds for the draft's.

    Args:
        token_ns: what a token more costs, as measured beforehand; 0 if unknown.
    """

    token_ns: float = 0.0
    num_passes: float = 0.0
    _costs: list[float] = field(init=False)  # of the pass, of a token, of the draft's work
    _covariance: list[list[float]] = field(init=False)

    def add(self, num_tokens: float, draft_works: bool, took_ns: float, share: float = 1.0) -> None:
        """Learns from a pass, or a share of one that others learn from, too."""
        if not self.num_passes:
            self._begin(num_tokens, took_ns)
        self.num_passes += share
        step, covariance = (1.0, num_tokens, float(draft_works)), self._covariance
        expected_ns = max(1.0, self.at(num_tokens, draft_works))
        for i, drift in enumerate((_DRIFT, _TOKEN_DRIFT / num_tokens, _BESIDE_DRIFT)):
            covariance[i][i] += share * (drift * expected_ns) ** 2
        spread = [_dot(row, step) for row in covariance]
        variance = _dot(spread, step) + (_NOISE * expected_ns) ** 2 / share
        surprise_ns = took_ns - _dot(self._costs, step)
        variance *= max(1.0, abs(surprise_ns) / (_MOST_DEVIATIONS * variance**0.5))
        for i, gain in enumerate([each / variance for each in spread]):
            self._costs[i] += gain * surprise_ns
            for j in range(3):
                covariance[i][j] -= gain * spread[j]
        if (less_ns := self._costs[2]) < 0:
            # A draft that works makes no pass shorter. If it seems so, the others are wrong.
            self._costs = [
                cost - less_ns * covariance[i][2] / covariance[2][2]
                for i, cost in enumerate(self._costs)
            ]

    def _begin(self, num_tokens: float, took_ns: float) -> None:
        token_share = _TOKEN_ERROR if self.token_ns else _TOKEN
        self._costs = [max(0.0, took_ns - self.token_ns * num_tokens), self.token_ns, 0.0]
        deviations = (took_ns, token_share * took_ns / num_tokens, _BESIDE * took_ns)
        self._covariance = [
            [deviation**2 if i == j else 0.0 for j in range(3)]
            for i, deviation in enumerate(deviations)
        ]

    def at(self, num_tokens: float, draft_works: bool) -> float:
        """What such a pass takes; no less if it is wider. 0 if none was seen."""
        if not self.num_passes:
            return 0.0
        pass_ns, token_ns, beside_ns = self._costs
        return max(0.0, pass_ns + max(0.0, token_ns) * num_tokens + beside_ns * draft_works)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
