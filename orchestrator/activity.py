"""The orchestrator's activity now, and since its start."""

import copy
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.reporting.speculation import Speculation
from outrider.observability.distribution import Distribution, powers_of_two
from outrider.protocol.stages import Stage

if TYPE_CHECKING:
    from orchestrator.generation import Generation


def _durations() -> Distribution:
    """A distribution of durations, from a quarter of a millisecond to two minutes."""
    return Distribution(powers_of_two(250_000, 20))


@dataclass
class Totals:
    """Totals over all requests, including running ones."""

    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    speculation: Speculation = field(default_factory=Speculation)
    critical_path: Counter[str] = field(default_factory=Counter)
    hidden: Counter[str] = field(default_factory=Counter)

    def add(self, generation: "Generation") -> None:
        self.num_prompt_tokens += generation.num_prompt_tokens
        self.num_output_tokens += generation.num_committed_tokens
        self.speculation.add(generation.speculation)
        self.critical_path.update(generation.path.stages)
        self.hidden.update(generation.path.hidden)


class Activity:
    """Tracks running requests, and the totals of those that have ended.

    Nothing is added while a request runs: each query adds the running requests' own counts.
    """

    def __init__(self) -> None:
        self.num_ended = 0
        # Nanoseconds, one value for each request that has ended.
        self.stages: defaultdict[str, Distribution] = defaultdict(_durations)
        self.hidden: defaultdict[str, Distribution] = defaultdict(_durations)
        self.ttft, self.tpot = _durations(), _durations()
        self._began_ns = time.monotonic_ns()
        self._ended = Totals()
        self._running: set[Generation] = set()

    @property
    def uptime_ns(self) -> int:
        return time.monotonic_ns() - self._began_ns

    @property
    def num_running(self) -> int:
        return len(self._running)

    @contextmanager
    def running(self, generation: "Generation") -> Iterator[None]:
        """Context manager in which a request runs; it is counted however it ends."""
        self._running.add(generation)
        try:
            yield
        finally:
            self._running.remove(generation)
            self._end(generation)

    def _end(self, generation: "Generation") -> None:
        generation.path.spend(Stage.ORCHESTRATOR)  # the path ends here
        self.num_ended += 1
        self._ended.add(generation)
        for stage, duration_ns in generation.path.stages.items():
            self.stages[stage].add(duration_ns)
        for stage, duration_ns in generation.path.hidden.items():
            self.hidden[stage].add(duration_ns)
        if generation.path.ttft_ns:
            self.ttft.add(generation.path.ttft_ns)
        if generation.path.tpot_ns:
            self.tpot.add(generation.path.tpot_ns)

    def totals(self) -> Totals:
        totals = copy.deepcopy(self._ended)
        for generation in self._running:
            totals.add(generation)
        return totals
