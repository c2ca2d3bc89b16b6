"""Which requests may start, which wait, and which are refused.

A request that runs holds one of the target's slots. When all are taken, requests wait
in the order of their arrival; when too many wait, or one would wait past its deadline,
it is refused at once, so that a client learns it while there is time to go elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from outrider.errors import DeadlineUnreachable, QueueFull

DEFAULT_MAX_QUEUED = 256

# What an earlier request counts beside the latest one in the time that a token takes.
_FORGETTING = 0.9
_SHORTEST_RETRY_SECONDS = 0.1


class Admission:
    """Hands out `num_slots` slots. The counts are for whoever watches.

    How long a request will take is guessed from those before it: their time by the
    tokens that they asked for.
    """

    def __init__(self, num_slots: int, max_queued: int = DEFAULT_MAX_QUEUED) -> None:
        self.num_slots = num_slots
        self.max_queued = max_queued
        self.num_running = 0
        self.num_queued = 0
        self.num_refused = 0  # because too many waited
        self.num_unreachable = 0  # because the deadline would have passed
        self.seconds_per_token = 0.0  # of a request's max_new_tokens; 0: nobody knows yet
        self._running_tokens = 0  # that requests which run asked for
        self._queued_tokens = 0
        self._slots = asyncio.Semaphore(num_slots)

    @asynccontextmanager
    async def slot(self, num_tokens: int, seconds_left: float | None) -> AsyncIterator[None]:
        """A slot for a request of up to `num_tokens` tokens, held as long as the context.

        A slot that is free is given without question, so that a guess that was wrong
        is corrected by the next request.

        Raises:
            QueueFull: `max_queued` requests wait already.
            DeadlineUnreachable: the request would not be done in `seconds_left`.
        """
        if self._slots.locked():
            deadline = None if seconds_left is None else time.monotonic() + seconds_left
            await self._queue(num_tokens, deadline)
        else:
            await self._slots.acquire()  # returns at once
        self.num_running += 1
        self._running_tokens += num_tokens
        began, is_done = time.monotonic(), False
        try:
            yield
            is_done = True
        finally:
            self.num_running -= 1
            self._running_tokens -= num_tokens
            self._slots.release()
            self._learn((time.monotonic() - began) / num_tokens, is_done)

    def check_queue(self) -> None:
        """Raises QueueFull if a request would have to wait and no more may."""
        if self._slots.locked() and self.num_queued >= self.max_queued:
            self.num_refused += 1
            raise QueueFull("too many requests are waiting", retry_after=self.retry_seconds)

    @property
    def retry_seconds(self) -> float:
        """After which a new try makes sense: until half of those who wait have started."""
        return max(_SHORTEST_RETRY_SECONDS, self._seconds_to_wait / 2)

    @property
    def _seconds_to_wait(self) -> float:
        """Until all who wait now have started, if those who run are half done."""
        num_tokens = self._queued_tokens + self._running_tokens / 2
        return num_tokens / self.num_slots * self.seconds_per_token

    async def _queue(self, num_tokens: int, deadline: float | None) -> None:
        """Waits for a slot, as long as there is time for the text after it."""
        self.check_queue()
        self._check_deadline(self._seconds_to_wait, num_tokens, deadline)
        self.num_queued += 1
        self._queued_tokens += num_tokens
        try:
            async with asyncio.timeout(self._patience(num_tokens, deadline)):
                await self._slots.acquire()
        except TimeoutError:
            raise self._unreachable() from None
        finally:
            self.num_queued -= 1
            self._queued_tokens -= num_tokens
        try:
            self._check_deadline(0.0, num_tokens, deadline)
        except DeadlineUnreachable:
            self._slots.release()
            raise

    def _check_deadline(self, wait: float, num_tokens: int, deadline: float | None) -> None:
        patience = self._patience(num_tokens, deadline)
        if patience is not None and wait > patience:
            raise self._unreachable()

    def _patience(self, num_tokens: int, deadline: float | None) -> float | None:
        """The seconds in which a text must have begun to be done in time; None: no matter."""
        if deadline is None:
            return None
        return deadline - time.monotonic() - num_tokens * self.seconds_per_token

    def _unreachable(self) -> DeadlineUnreachable:
        self.num_unreachable += 1
        return DeadlineUnreachable(
            "the deadline would pass before the text is done", retry_after=self.retry_seconds
        )

    def _learn(self, seconds_per_token: float, is_done: bool) -> None:
        """A request that was given up tells only how long it takes at least."""
        before = self.seconds_per_token
        if is_done or seconds_per_token > before:
            latest = _FORGETTING * before + (1 - _FORGETTING) * seconds_per_token
            self.seconds_per_token = latest if before else seconds_per_token
