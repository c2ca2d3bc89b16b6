"""Where a request's time goes, measured as consecutive intervals on one clock."""

import time
from collections import defaultdict

from orchestrator.reporting.timeline import Timeline
from orchestrator.step import StepRecord, Wait
from outrider.protocol.stages import Stage

# The stages that a wait for a service consists of besides its work: network and queue. The queue
# of a prompt, in which other sessions' chunks come first, is part of the reading.
_BESIDES = {
    Stage.PREFILL_TARGET: (Stage.PREFILL_NETWORK, Stage.PREFILL_TARGET),
    Stage.DRAFT_COMPUTE: (Stage.DRAFT_NETWORK, Stage.DRAFT_QUEUE),
    Stage.VERIFY_COMPUTE: (Stage.VERIFY_NETWORK, Stage.VERIFY_QUEUE),
}


class CriticalPath:
    """Attributes every nanosecond since its creation to a stage.

    Each interval begins where the previous one ended, so the stages add up to the wall time by
    construction. The intervals are also passed to the timeline, if there is one.
    """

    def __init__(self, timeline: Timeline | None = None) -> None:
        self.timeline = timeline
        self.stages: defaultdict[str, int] = defaultdict(int)
        self.hidden: defaultdict[str, int] = defaultdict(int)
        self.ttft_ns = 0
        """From the creation to the first committed token."""
        self.is_stepping = False
        """Whether a step is running, so that work on the text of earlier steps is hidden."""
        self._num_tokens = 0
        # The latest that was hidden so, and when it ended.
        self._hidden_stage = (Stage.ORCHESTRATOR, 0)
        self._hidden_since_ns = 0  # when the current one began
        self._began_ns = self._last_ns = time.perf_counter_ns()

    @property
    def wall_ns(self) -> int:
        """From the creation to the end of the last interval."""
        return self._last_ns - self._began_ns

    def committed(self, num_tokens: int) -> None:
        """Notes that `num_tokens` tokens have been committed by now."""
        self.ttft_ns = self.ttft_ns or self.wall_ns
        self._num_tokens = num_tokens

    @property
    def tpot_ns(self) -> int:
        """Time per token after the first; 0 with fewer than two tokens."""
        num_later = self._num_tokens - 1
        return (self.wall_ns - self.ttft_ns) // num_later if num_later > 0 else 0

    def spend(self, stage: Stage) -> None:
        """Attributes the interval that ends now to a stage; as hidden while a step is running."""
        now_ns = time.perf_counter_ns()
        if not self.is_stepping:
            self._advance(stage, now_ns)
            return
        self._hide(stage, now_ns - self._hidden_since_ns)
        if self.timeline is not None:
            self.timeline.hidden(stage, self._hidden_since_ns, now_ns)
        self._hidden_stage, self._hidden_since_ns = (stage, now_ns), now_ns

    def book(self, step: StepRecord) -> None:
        """Attributes a step's time: its waits, and the orchestrator's work between them."""
        for wait in step.waits:
            self._book_own_work(wait.began_ns)
            self._book_wait(wait)
        self._book_own_work(step.ended_ns)
        self._book_what_outlasted(step)
        self._hidden_since_ns = time.perf_counter_ns()
        self._hide(Stage.DRAFT_COMPUTE, step.hidden_draft_ns)
        self._hide(Stage.PREFILL_DRAFT, step.hidden_prefill_ns)
        if self.timeline is not None:
            self.timeline.step(step)

    def _book_what_outlasted(self, step: StepRecord) -> None:
        """Puts on the path what was hidden behind the step until it ended: clients may be slow."""
        stage, until_ns = self._hidden_stage
        if until_ns > step.ended_ns:
            self.hidden[stage] -= self._advance(stage, until_ns)

    def _book_own_work(self, until_ns: int) -> None:
        self._advance(Stage.ORCHESTRATOR, until_ns)

    def _book_wait(self, wait: Wait) -> None:
        """Splits a wait by the service's own durations.

        What these do not account for was spent in the network, and in gRPC at both ends; half of
        it is booked before the work. For a pipelined request the service may have worked longer
        than was waited: that part is hidden.
        """
        if wait.timings is None:
            self._advance(wait.stage, wait.ended_ns)
            return
        network, queue = _BESIDES[wait.stage]
        interval_ns = max(0, wait.ended_ns - self._last_ns)
        server_ns = min(wait.timings.total_ns, interval_ns)
        # Of a target that runs ahead, the queue counts from before its total.
        queue_ns = min(wait.timings.queue_ns, server_ns)
        arrived_ns = self._last_ns + (interval_ns - server_ns) // 2
        self._advance(network, arrived_ns)
        self._advance(queue, arrived_ns + queue_ns)
        self._advance(wait.stage, arrived_ns + server_ns)
        self._advance(network, wait.ended_ns)
        self._hide(wait.stage, wait.timings.total_ns - interval_ns)

    def _advance(self, stage: Stage, until_ns: int) -> int:
        """Attributes the time since the last interval to a stage; returns how long it was."""
        began_ns, self._last_ns = self._last_ns, max(self._last_ns, until_ns)
        if self.timeline is not None:
            self.timeline.stage(stage, began_ns, self._last_ns)
        self.stages[stage] += self._last_ns - began_ns
        return self._last_ns - began_ns

    def _hide(self, stage: Stage, duration_ns: int) -> None:
        """Notes work that was done while something on the critical path went on."""
        if duration_ns > 0:
            self.hidden[stage] += duration_ns
