"""Distributions of values in plain counts, which Prometheus calls histograms."""

from bisect import bisect_left
from dataclasses import dataclass, field


@dataclass
class Distribution:
    """Counts of values up to each of `bounds`, which ascend, and above the last one."""

    bounds: tuple[int, ...]
    counts: list[int] = field(init=False)
    total: int = 0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def powers_of_two(first: int, count: int) -> tuple[int, ...]:
    """`first`, twice that, four times that, ...: `count` values."""
    return tuple(first * 2**i for i in range(count))
