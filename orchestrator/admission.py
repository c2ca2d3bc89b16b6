"""Admission of requests: which may start, which wait, and which are refused.

A running request holds one of the target's slots. When all are taken, requests wait in order of
arrival. A request is refused at once if too many are waiting, or if it is expected to wait for too
long or to miss its deadline, so that the client has time to try another server.
"""

import asyncio
import heapq
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.forecast import Forecast, Work
from orchestrator.resizable_semaphore import ResizableSemaphore
from outrider.errors import DeadlineUnreachable, QueueFull

DEFAULT_MAX_QUEUED = 256
DEFAULT_MAX_QUEUE_SECONDS = 10.0

# A request whose forecast wait is at most this share of the longest wait is unlikely to exceed
# the latter.
_SAFE_PART = 0.8

# Nothing is learned from refused requests. So when requests are refused although a slot is free,
# every eighth one in a row is admitted nevertheless, and its time replaces the forecast.
_DOUBT_AFTER = 8

_SHORTEST_RETRY_SECONDS = 0.1


class Slot:
    """The slot of a running request, and the request's progress."""

    def __init__(self, work: Work, forecast: Forecast, running: "set[Slot]") -> None:
        self.work = work
        self.num_tokens = 0
        self._forecast = forecast
        self._running = running

    def advance(self, num_tokens: int, seconds: float) -> None:
        """Notes that the request now has `num_tokens` tokens, the newest after `seconds`."""
        num_new = num_tokens - self.num_tokens
        if self.num_tokens:
            self._forecast.saw_tokens(len(self._running), seconds, num_new)
        else:
            self._forecast.saw_prompt(len(self._running), seconds, self.work, num_new)
        self.num_tokens = num_tokens


class Admission:
    """Assigns `num_slots` slots to requests. The counts are for metrics.

    Args:
        max_queued: how many requests may wait.
        max_queue_seconds: how long a request may wait. It is refused at once if its expected wait
            exceeds 80 % of this, and later if its actual wait exceeds all of it.
    """

    def __init__(
        self,
        num_slots: int,
        max_queued: int = DEFAULT_MAX_QUEUED,
        max_queue_seconds: float = DEFAULT_MAX_QUEUE_SECONDS,
    ) -> None:
        self.num_slots = num_slots
        self.max_queued = max_queued
        self.max_queue_seconds = max_queue_seconds
        self.forecast = Forecast()
        self.num_refused = 0  # because of the queue
        self.num_unreachable = 0  # because the deadline would have passed
        self._running: set[Slot] = set()
        self._queued: dict[object, Work] = {}  # in the order of arrival
        self._slots = ResizableSemaphore(num_slots)
        self._num_doubted = 0

    def resize(self, num_slots: int) -> None:
        """Changes the number of slots, for a target that was restarted."""
        self.num_slots = num_slots
        self._slots.resize(num_slots)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_queued(self) -> int:
        return len(self._queued)

    @asynccontextmanager
    async def slot(self, work: Work, seconds_left: float | None) -> AsyncIterator[Slot]:
        """Context manager that waits for a slot and holds it for a request.

        Raises:
            QueueFull: too many requests wait, or this one would wait for too long.
            DeadlineUnreachable: the request is not expected to finish within `seconds_left`.
        """
        deadline = math.inf if seconds_left is None else time.monotonic() + seconds_left
        if self._slots.locked():
            await self._wait(work, deadline)
        else:
            self._check_alone(work, deadline)
            await self._slots.acquire()  # returns at once
        slot, is_done = Slot(work, self.forecast, self._running), False
        self._running.add(slot)
        self._num_doubted = 0
        try:
            yield slot
            is_done = True
        finally:
            self._running.remove(slot)
            self._slots.release()
            ended = is_done and slot.num_tokens < work.max_new_tokens
            self.forecast.saw_text(work, slot.num_tokens, ended)

    def check_queue(self) -> None:
        """Raises QueueFull if a new request would be refused."""
        if not self._slots.locked():
            return
        if self.num_queued >= self.max_queued:
            raise self._refused("too many requests are waiting")
        if self.seconds_to_wait > _SAFE_PART * self.max_queue_seconds:
            raise self._refused("the wait for a slot is too long")

    @property
    def seconds_to_wait(self) -> float:
        """The expected wait of a new request, in seconds."""
        speed = self.forecast.speed(self.num_slots)
        ends = [0.0] * (self.num_slots - self.num_running)
        ends += [speed.seconds(slot.work, slot.num_tokens) for slot in self._running]
        ends = heapq.nlargest(self.num_slots, ends)  # after a shrink the first are not free
        heapq.heapify(ends)
        for work in self._queued.values():
            heapq.heapreplace(ends, ends[0] + speed.seconds(work))
        return ends[0] if ends else 0.0

    @property
    def retry_seconds(self) -> float:
        """When a refused client should retry: in how many seconds half of the queue has started."""
        return max(_SHORTEST_RETRY_SECONDS, self.seconds_to_wait / 2)

    async def _wait(self, work: Work, deadline: float) -> None:
        """Waits for a slot, within the limit and while there is time for the text."""
        self.check_queue()
        wait_budget = self._seconds_to_start(work, deadline, self.num_slots)
        if self.seconds_to_wait > wait_budget:
            raise self._unreachable()
        place = object()
        self._queued[place] = work
        try:
            async with asyncio.timeout(min(wait_budget, self.max_queue_seconds)):
                await self._slots.acquire()
        except TimeoutError:
            if wait_budget < self.max_queue_seconds:
                raise self._unreachable() from None
            raise self._refused("the wait for a slot is too long") from None
        finally:
            del self._queued[place]
        if self._seconds_to_start(work, deadline, self.num_slots) < 0:
            self._slots.release()
            raise self._unreachable()

    def _check_alone(self, work: Work, deadline: float) -> None:
        """Mostly raises DeadlineUnreachable if a slot is free but time is short."""
        num_running = self.num_running + 1
        if self._seconds_to_start(work, deadline, num_running) >= 0:
            return
        self._num_doubted += 1
        if self._num_doubted < _DOUBT_AFTER:
            raise self._unreachable()
        self.forecast.forget(work, num_running)

    def _seconds_to_start(self, work: Work, deadline: float, num_running: int) -> float:
        """Seconds within which a text must begin to be done in time, of `num_running` texts."""
        return deadline - time.monotonic() - self.forecast.seconds(work, num_running)

    def _refused(self, why: str) -> QueueFull:
        self.num_refused += 1
        return QueueFull(why, retry_after=self.retry_seconds)

    def _unreachable(self) -> DeadlineUnreachable:
        self.num_unreachable += 1
        retry_after = self.retry_seconds if self._slots.locked() else None
        return DeadlineUnreachable(
            "the deadline would pass before the text is done", retry_after=retry_after
        )
