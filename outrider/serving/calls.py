"""Calls that the server ends: at the end of a drain, or because their client is idle."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from outrider.errors import IdleTimeout, ServiceUnavailable
from outrider.protocol.interceptors import Around, Behaviour, Context, Method


class RunningCalls(Around):
    """Tracks running calls, and can end them. Must be inside of the `ErrorInterceptor`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_cut = False

    @property
    def num_running(self) -> int:
        return len(self._tasks)

    @contextmanager
    def around(self, method: Method, context: Context) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._is_cut:
                raise
            raise ServiceUnavailable("the service was shut down before the call was done") from None
        finally:
            self._tasks.discard(task)

    async def wait_until_none(self, seconds: float) -> bool:
        """Waits up to `seconds` for all calls to end; returns whether they have."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))
        return not self._tasks

    def cut_off(self) -> None:
        """Ends all calls with UNAVAILABLE."""
        self._is_cut = True
        for task in self._tasks:
            task.cancel()


class IdleTimeouts(Around):
    """Ends calls whose client neither sends nor reads for too long, to free their slots.

    Time in which the server works does not count. Must be inside of the `ErrorInterceptor`.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def wrap(self, method: Method, behaviour: Behaviour) -> Behaviour:
        if method.kind == "unary":
            return behaviour

        async def wrapped(request: Any, context: Context) -> Any:
            try:
                async with asyncio.timeout(None) as limit:
                    timed: Any = _TimedContext(context, limit, self._seconds)
                    if method.kind == "bidi_stream":
                        request = _Requests(request, timed)
                    try:
                        return await behaviour(request, timed)
                    finally:
                        timed.close()
            except TimeoutError:
                if not limit.expired():
                    raise
                raise IdleTimeout(
                    "the client has not moved for longer than the idle time-out",
                    seconds=f"{self._seconds:g}",
                ) from None

        return wrapped


class _TimedContext:
    """A call's context, whose time limit runs while the server waits for the client.

    The clock is read at each message, and the limit is looked at when it may have passed: a timer
    set anew for each message would cost as much as the rest of it.
    """

    def __init__(self, context: Context, limit: asyncio.Timeout, seconds: float) -> None:
        self._context = context
        self._limit = limit
        self._seconds = seconds
        self._num_awaited = 0
        self._since = 0.0  # the last change of `_num_awaited`
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._look)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        self.note(+1)
        try:
            await self._context.write(message)
        finally:
            self.note(-1)

    def note(self, change: int) -> None:
        """Notes that waiting for the client begins or ends; either restarts the limit."""
        self._num_awaited += change
        self._since = self._loop.time()

    def _look(self) -> None:
        now = self._loop.time()
        due = (self._since if self._num_awaited else now) + self._seconds
        if due <= now:
            self._limit.reschedule(now)
        else:
            self._timer = self._loop.call_at(due, self._look)

    def close(self) -> None:
        """Ends the limit, as the handler has ended. Something may still be written."""
        self._timer.cancel()


class _Requests:
    """A client's requests, each with the time limit of its own wait."""

    def __init__(self, requests: AsyncIterator[Any], context: _TimedContext) -> None:
        self._requests = requests
        self._context = context
        self._receiving: asyncio.Task[None] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        self._context.note(+1)
        try:
            # Not cancelled with the handler: gRPC frees the buffers of a receive only when it
            # completes, and would leak 110 bytes for each cancelled call.
            arrival = asyncio.get_running_loop().create_future()
            self._receiving = asyncio.create_task(self._receive(arrival))
            request = await arrival
        finally:
            self._context.note(-1)
        if request is None:
            raise StopAsyncIteration
        return request

    async def _receive(self, arrival: asyncio.Future[Any]) -> None:
        """Resolves `arrival` with the next request, unless its handler has ended by then."""
        try:
            request = await self._next()
        except BaseException as error:
            if not arrival.done():
                arrival.set_exception(error)
        else:
            if not arrival.done():
                arrival.set_result(request)

    async def _next(self) -> Any:
        return await anext(self._requests, None)
