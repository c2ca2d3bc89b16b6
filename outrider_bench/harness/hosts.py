"""Simulated hosts on one machine: cores for the target, other cores for the draft."""

import os
import sys
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Hosts:
    """The cores of the target's host and of the draft's; None where they share all."""

    target: frozenset[int] | None
    draft: frozenset[int] | None

    @classmethod
    def of(cls, num_cores: int, available: Sequence[int]) -> "Hosts":
        """Two hosts of `num_cores` cores each, if there are enough."""
        if len(available) < 2 * num_cores:
            return cls(None, None)
        return cls(frozenset(available[:num_cores]), frozenset(available[num_cores:][:num_cores]))

    def __str__(self) -> str:
        if self.target is None or self.draft is None:
            return "all on the same cores"
        return f"target on cores {sorted(self.target)}, draft on cores {sorted(self.draft)}"


def available_cores() -> list[int]:
    """The cores that this process may use; empty where processes cannot be bound to cores."""
    if sys.platform != "linux":
        return []
    return sorted(os.sched_getaffinity(0))


@contextmanager
def bound_to(cores: Set[int] | None) -> Iterator[None]:
    """Binds processes and threads that the calling thread starts meanwhile to `cores`."""
    if cores is None or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
