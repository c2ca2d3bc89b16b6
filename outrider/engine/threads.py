"""How many threads compute: as many as asked for, fewer while the machine is busy."""

from __future__ import annotations


def thread_counts(most: int) -> tuple[int, ...]:
    """The numbers of threads that may be used, descending: all, half of them, one."""
    return tuple(sorted({most, max(1, most // 2), 1}, reverse=True))
