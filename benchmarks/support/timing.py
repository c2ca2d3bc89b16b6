"""Times of calls, and what many of them were like."""

import statistics
import time
from collections.abc import Callable


def timed_ms(call: Callable[[], object]) -> float:
    """The milliseconds of one call."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def median_ms(call: Callable[[], object], repeats: int, first: int = 0) -> float:
    """The median of `repeats` calls without the `first` ones, which may be slower."""
    times = [timed_ms(call) for _ in range(repeats)]
    return statistics.median(times[first:])
