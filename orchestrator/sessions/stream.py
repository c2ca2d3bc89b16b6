"""The client side of a session's stream; turns gRPC errors into OutriderError."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from outrider.errors import IdleTimeout, NoFreeSlot, OutriderError, ServiceUnavailable
from outrider.observability import telemetry
from outrider.protocol.channel import from_rpc_error

_LONGEST_RETRY_SECONDS = 0.25

# What gRPC says about a write after the end of the stream, before the status has arrived.
_MET_THE_END = "Internal error from Core"


class _UnknownEnd(ServiceUnavailable):
    """The service has ended the session, but gRPC has lost the reason."""


class SessionStream:
    """A bidirectional stream with a response to every request, and possibly further responses.

    Args:
        open_call: opens the stream.
        settings: a message with additional fields for the first request.
        wait_seconds: how long to retry if the service has no free slot.
        service: its name in errors.
    """

    def __init__(
        self, open_call: Callable[[], Any], settings: Any, wait_seconds: float, service: str
    ) -> None:
        self._service = service
        self._open_call = open_call
        self._call: Any = None  # until something is sent
        self._settings = settings
        self._wait_seconds = wait_seconds

    async def exchange(self, request: Any) -> Any:
        """Sends a request and awaits its response. Raises OutriderError."""
        if self._settings is not None:
            return await self._begin(request)
        return await self._exchange(request)

    async def _begin(self, request: Any) -> Any:
        """The first exchange. Reopens the stream and retries for up to `wait_seconds`.

        That is, if the service has no free slot, has closed the session since it was idle for too
        long, or has ended it for an unknown reason.
        """
        now = asyncio.get_running_loop().time
        seconds, give_up = 0.002, now() + self._wait_seconds
        while True:
            try:
                return await self._exchange(request)
            except (NoFreeSlot, IdleTimeout, _UnknownEnd):
                if now() + seconds > give_up:
                    raise
                await asyncio.sleep(seconds)
                seconds = min(2 * seconds, _LONGEST_RETRY_SECONDS)
                self._call = self._open_call()

    async def _exchange(self, request: Any) -> Any:
        await self.send(request)
        return await self.receive()

    async def send(self, request: Any) -> None:
        """Sends a request. Raises OutriderError."""
        if self._settings is not None:
            request.MergeFrom(self._settings)
            self._settings = None
        if span_id := telemetry.current_span_id():
            request.step_span_id = span_id
        if self._call is None:
            self._call = self._open_call()
        try:
            await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            if error.details() == _MET_THE_END:
                raise _UnknownEnd(f"{self._service}: it ended the session") from error
            raise from_rpc_error(error, self._service) from error
        except asyncio.InvalidStateError:  # the stream had ended before
            raise await self._end_of_stream() from None

    async def receive(self) -> Any:
        """The next response. Raises OutriderError, also at the end of the stream."""
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._service) from error
        except asyncio.InvalidStateError:
            response = grpc.aio.EOF
        if response is grpc.aio.EOF:
            raise await self._end_of_stream()
        if response is None:  # bytes that gRPC could not parse
            raise OutriderError(f"{self._service}: it sent what cannot be decoded")
        return response

    async def _end_of_stream(self) -> OutriderError:
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return ServiceUnavailable(f"{self._service}: it ended the session")
        return from_rpc_error(
            grpc.aio.AioRpcError(
                code,
                await self._call.initial_metadata(),
                await self._call.trailing_metadata(),
                await self._call.details(),
            ),
            self._service,
        )

    def close(self) -> None:
        """Ends the session; the service frees its slot."""
        if self._call is not None:
            self._call.cancel()
