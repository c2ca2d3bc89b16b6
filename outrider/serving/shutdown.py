"""Shutdown of a server, from the signal on."""

import asyncio
import logging
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import grpc

from outrider.exits import exit_at_once
from outrider.serving.calls import RunningCalls
from outrider.serving.health import Health

log = logging.getLogger(__name__)

# For answers on their way, after the last call has ended.
_FLUSH_SECONDS = 1.0


class Stopped(Exception):
    """A signal arrived before the service was loaded, so that there is nothing to drain."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class StopSignals:
    """SIGINT and SIGTERM: the first signal starts the shutdown, a second one ends it at once."""

    def __init__(self) -> None:
        self._first = asyncio.get_running_loop().create_future()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._note, number)

    def _note(self, number: int) -> None:
        if self._first.done():
            exit_at_once(number)
        self._first.set_result(number)

    async def interrupt(self, work: Coroutine[Any, Any, None]) -> None:
        """Awaits `work`. Raises Stopped if a signal arrives first, and what `work` raises."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait((task, self._first), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return await task
            raise Stopped(self._first.result())
        finally:
            task.cancel()


async def drain(
    server: grpc.aio.Server, health: Health, calls: RunningCalls, seconds: float
) -> None:
    """Refuses new calls, and gives running ones `seconds` to end.

    Does not wait for calls of other services, such as reflection.
    """
    now = asyncio.get_running_loop().time
    give_up = now() + seconds
    await health.enter_graceful_shutdown()
    # From here on clients are told to connect elsewhere.
    stopping = asyncio.create_task(server.stop(seconds + 2 * _FLUSH_SECONDS))
    if calls.num_running:
        log.info("draining: %d calls may go on for %g s", calls.num_running, seconds)
    while True:
        if not await calls.wait_until_none(max(0.0, give_up - now())):
            log.warning("cut off %d calls after %g s", calls.num_running, seconds)
            calls.cut_off()
            await calls.wait_until_none(_FLUSH_SECONDS)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(stopping), _FLUSH_SECONDS)
        # A call whose request was still on its way may have begun meanwhile.
        if stopping.done() or not calls.num_running:
            break
    await server.stop(None)
    await stopping
