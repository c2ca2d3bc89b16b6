"""Where a request's time goes, measured as consecutive intervals of one clock."""

from __future__ import annotations

import time
from collections import defaultdict

from orchestrator.reporting.timeline import Timeline
from outrider.protocol.messages import Timings


class CriticalPath:
    """Attributes every nanosecond since its creation to a stage.

    Each call books the interval since the previous call, so the stages add up to
    the wall time by the way they are measured. A timeline gets the intervals, too.
    """

    def __init__(self, timeline: Timeline | None = None) -> None:
        self.timeline = timeline
        self.stages: defaultdict[str, int] = defaultdict(int)
        self.hidden: defaultdict[str, int] = defaultdict(int)
        self._began_ns = self._last_ns = time.perf_counter_ns()

    @property
    def wall_ns(self) -> int:
        """From the creation to the last booked interval."""
        return self._last_ns - self._began_ns

    def spend(self, stage: str) -> int:
        """Books the interval since the last call to `stage` and returns it."""
        interval_ns = self._advance(stage)
        self.stages[stage] += interval_ns
        return interval_ns

    def spend_waiting(self, stage: str, timings: Timings) -> int:
        """Books an interval in which nothing but a service's reply was awaited; returns it.

        The reply's durations split it: what the server does not account for was
        spent in the network and in gRPC at both ends. Where the request was sent ahead,
        the service may have worked for longer than was waited: that much is hidden.
        """
        interval_ns = self._advance(stage)
        server_ns = min(timings.total_ns, interval_ns)
        # Where the target goes on alone, its queue is counted from before its total.
        queue_ns = min(timings.queue_ns, server_ns)
        compute_ns = server_ns - queue_ns
        self.stages[f"{stage}_network"] += interval_ns - server_ns
        self.stages[f"{stage}_queue"] += queue_ns
        self.stages[f"{stage}_compute"] += compute_ns
        if timings.total_ns > interval_ns:
            self.hide(f"{stage}_compute", timings.total_ns - interval_ns)
        return interval_ns

    def _advance(self, name: str) -> int:
        """The interval since the last call, which the timeline gets under this name."""
        began_ns, self._last_ns = self._last_ns, time.perf_counter_ns()
        if self.timeline is not None:
            self.timeline.stage(name, began_ns, self._last_ns)
        return self._last_ns - began_ns

    def hide(self, stage: str, duration_ns: int) -> None:
        """Notes work that ran behind something on the critical path."""
        self.hidden[stage] += max(0, duration_ns)
