"""`grpc.health.v1` for one service; the status says whether requests can be served."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from grpc_health.v1 import health, health_pb2

from outrider.errors import EngineFailed, OutriderError

log = logging.getLogger(__name__)

Readiness = Callable[[], Awaitable[None]]
"""Raises OutriderError if requests cannot be served now, EngineFailed if never again."""

# Seconds between two checks.
CHECK_SECONDS = 1.0


class Health(health.aio.HealthServicer):  # type: ignore[misc,unused-ignore]
    """One status for the server and its service, to be set before the server starts."""

    def __init__(self, service_name: str) -> None:
        super().__init__()
        self._names = ("", service_name)

    async def set_serving(self, is_serving: bool) -> None:
        """Sets the status. Does nothing after `enter_graceful_shutdown`."""
        status = health_pb2.HealthCheckResponse
        for name in self._names:
            await self.set(name, status.SERVING if is_serving else status.NOT_SERVING)

    async def follow(self, check: Readiness) -> None:
        """Runs `check` periodically, and sets the status accordingly.

        Raises:
            EngineFailed: `check` raised it.
        """
        reason = ""
        while True:
            before, reason = reason, ""
            try:
                await check()
            except EngineFailed:
                await self.set_serving(False)
                raise
            except OutriderError as error:
                reason = error.message
            await self.set_serving(not reason)
            if reason != before:  # logged once, not at every check
                log.warning(f"not serving: {reason}" if reason else "serving again")
            await asyncio.sleep(CHECK_SECONDS)
