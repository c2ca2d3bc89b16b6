"""`grpc.health.v1` for one service; the status says whether requests can be served."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.errors import EngineFailed, OutriderError

log = logging.getLogger(__name__)

Readiness = Callable[[], Awaitable[None]]
"""Raises OutriderError if requests cannot be served now, EngineFailed if never again."""

# Seconds between two checks.
CHECK_SECONDS = 1.0

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc,unused-ignore]
    """One status for the server and its service, initially NOT_SERVING.

    Unlike the servicer of grpcio-health-checking it can end its Watch calls: a server that drains
    waits for all calls to end, which these would never do.
    """

    def __init__(self, service_name: str) -> None:
        self._names = ("", service_name)
        self._status = _NOT_SERVING
        self._has_ended = False
        self._changed = asyncio.Event()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=self._status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        told = None
        while True:
            changed = self._changed
            status = self._status if request.service in self._names else _UNKNOWN
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            elif self._has_ended:
                return
            else:
                await changed.wait()

    def set_serving(self, is_serving: bool) -> None:
        """Sets the status and reports it to Watch calls. Does nothing after `end`."""
        status = _SERVING if is_serving else _NOT_SERVING
        if status != self._status and not self._has_ended:
            self._status = status
            self._tell()

    def end(self) -> None:
        """Sets NOT_SERVING permanently; Watch calls report it and end."""
        self.set_serving(False)
        self._has_ended = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

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
                self.set_serving(False)
                raise
            except OutriderError as error:
                reason = error.message
            self.set_serving(not reason)
            if reason != before:  # logged once, not at every check
                log.warning(f"not serving: {reason}" if reason else "serving again")
            await asyncio.sleep(CHECK_SECONDS)
