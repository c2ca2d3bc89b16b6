"""What a pass of the target takes, told apart by what makes it longer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

# All as shares of what a pass takes. How much one differs from the next, how far the machine
# drifts from one to the next, and how far the other costs do.
_NOISE = 0.1
_DRIFT = 0.03
_TOKEN_DRIFT = 0.002
_BESIDE_DRIFT = 0.003
# What a draft that works beside may cost; what a token more may cost where nothing is known, and
# by how much a cost that was measured beforehand may be wrong.
_BESIDE = 1.0
_TOKEN = 0.2
_TOKEN_ERROR = 0.05
# Where each cost stands: of the pass itself, a token, the draft's work, and that after a hit.
_PASS, _PER_TOKEN, _WORK, _AFTER_HIT = range(4)
# A pass that is further from what was expected counts less, in proportion (P. J. Huber, 1964).
_MOST_DEVIATIONS = 3.0


class Beside(Enum):
    """What the draft does beside a pass."""

    REST = auto()
    WORK = auto()
    WORK_AFTER_HIT = auto()
    """A draft that had predrafted in time does so again; one that had not may not begin at all."""


@dataclass
class PassTime:
    """A pass of some tokens, beside a draft that works or rests, in nanoseconds.

    A Kalman filter (R. E. Kalman, 1960) of costs that add up: the pass itself, each of its
    tokens, the draft's work beside it, and what that costs more after a hit. Any step tells
    their sum, and it takes all kinds to tell them apart: what changes between two of a kind is
    first taken for the machine's, and the first difference between kinds for the draft's.

    Args:
        token_ns: what a token more costs, as measured beforehand; 0 if unknown.
    """

    token_ns: float = 0.0
    num_passes: float = 0.0
    _costs: list[float] = field(init=False)  # _PASS, _PER_TOKEN, _WORK, _AFTER_HIT
    _covariance: list[list[float]] = field(init=False)  # of what they are mistaken by

    def add(self, num_tokens: float, beside: Beside, took_ns: float, share: float = 1.0) -> None:
        """Learns from a pass, or a share of one that others learn from, too."""
        if not self.num_passes:
            self._begin(num_tokens, took_ns)
        self.num_passes += share
        expected_ns = max(1.0, self.at(num_tokens, beside))
        self._drift(num_tokens, expected_ns, share)
        counts, covariance = _counts(num_tokens, beside), self._covariance
        spread = [_dot(row, counts) for row in covariance]
        variance = _dot(spread, counts) + (_NOISE * expected_ns) ** 2 / share
        surprise_ns = took_ns - _dot(self._costs, counts)
        variance *= max(1.0, abs(surprise_ns) / (_MOST_DEVIATIONS * variance**0.5))
        for i, each in enumerate(spread):
            self._costs[i] += each / variance * surprise_ns
            covariance[i] = [
                old - each / variance * other
                for old, other in zip(covariance[i], spread, strict=True)
            ]
        for i in (_WORK, _AFTER_HIT):
            self._keep_positive(i)

    def doubt(self, less_ns: float) -> None:
        """So much of what the pass itself seems to take may be the draft's work beside it.

        What they take together is known all the same.
        """
        for i, j in itertools.product((_PASS, _WORK), repeat=2):
            self._covariance[i][j] += less_ns**2 if i == j else -(less_ns**2)

    def _begin(self, num_tokens: float, took_ns: float) -> None:
        token_share = _TOKEN_ERROR if self.token_ns else _TOKEN
        self._costs = [max(0.0, took_ns - self.token_ns * num_tokens), self.token_ns, 0.0, 0.0]
        shares = (1.0, token_share / num_tokens, _BESIDE, _BESIDE)
        self._covariance = [
            [(share * took_ns) ** 2 if i == j else 0.0 for j in range(len(shares))]
            for i, share in enumerate(shares)
        ]

    def _drift(self, num_tokens: float, expected_ns: float, share: float) -> None:
        """Trusts what was learned a little less: costs change from pass to pass."""
        drifts = (_DRIFT, _TOKEN_DRIFT / num_tokens, _BESIDE_DRIFT, _BESIDE_DRIFT)
        for i, drift in enumerate(drifts):
            self._covariance[i][i] += share * (drift * expected_ns) ** 2

    def _keep_positive(self, i: int) -> None:
        """A draft that works makes no pass shorter. If it seems so, the other costs are wrong."""
        if (less_ns := self._costs[i]) < 0:
            row = self._covariance[i]
            self._costs = [
                cost - less_ns * other / row[i]
                for cost, other in zip(self._costs, row, strict=True)
            ]

    def at(self, num_tokens: float, beside: Beside) -> float:
        """What such a pass takes; no less if it is wider. 0 if none was seen."""
        if not self.num_passes:
            return 0.0
        # As in `_counts`, but spelled out: it is asked many times at each step.
        pass_ns, token_ns, work_ns, after_hit_ns = self._costs
        took_ns = pass_ns + max(0.0, token_ns) * num_tokens
        if beside is not Beside.REST:
            took_ns += work_ns
        if beside is Beside.WORK_AFTER_HIT:
            took_ns += after_hit_ns
        return max(0.0, took_ns)


def _counts(num_tokens: float, beside: Beside) -> tuple[float, ...]:
    """How often each cost is paid."""
    after_hit = beside is Beside.WORK_AFTER_HIT
    return 1.0, num_tokens, float(beside is not Beside.REST), float(after_hit)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
