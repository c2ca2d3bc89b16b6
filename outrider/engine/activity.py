"""Counts of an engine's forward passes, as plain numbers. Does not import torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from outrider.observability.distribution import Distribution, powers_of_two


@dataclass
class PassCounts:
    """Distributions over forward passes: their jobs, tokens and times."""

    jobs: Distribution = field(default_factory=lambda: Distribution(powers_of_two(1, 7)))
    tokens: Distribution = field(default_factory=lambda: Distribution(powers_of_two(1, 12)))
    duration_ns: Distribution = field(
        default_factory=lambda: Distribution(powers_of_two(1_000_000, 11))
    )

    def count(self, chunk_lengths: Sequence[int], duration_ns: int) -> None:
        self.jobs.add(len(chunk_lengths))
        self.tokens.add(sum(chunk_lengths))
        self.duration_ns.add(duration_ns)
