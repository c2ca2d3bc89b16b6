"""The two ends of a gRPC stream in memory, as the sessions and the handlers see them."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import grpc
from grpc.aio import EOF

Status = tuple[grpc.StatusCode, str, tuple[tuple[str, Any], ...]]


class Way(Protocol):
    """What is between the two ends of a stream."""

    async def room(self) -> None:
        """Waits as long as the way is full."""
        ...

    def send_up(self, message: Any) -> None: ...

    def send_down(self, message: Any) -> None:
        """A response, or the status that ends the stream."""
        ...

    def cancel(self) -> None:
        """The client is gone; the server hears of it some time, and of nothing before."""
        ...


def copied(message: Any) -> Any:
    """As it comes out at the other end."""
    return type(message).FromString(message.SerializeToString())


class ClientCall:
    """What `grpc.aio.StreamStreamCall` does, as far as sessions use it."""

    def __init__(self, way: Way) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._way = way
        self._status: Status | None = None
        self._finished = asyncio.Event()

    def finish(self, status: Status) -> None:
        if self._status is None:
            self._status = status
            self._finished.set()
            self.inbox.put_nowait(EOF)

    def cancel(self) -> bool:
        if self._status is not None:
            return False
        self.finish((grpc.StatusCode.CANCELLED, "Locally cancelled by application!", ()))
        self._way.cancel()
        return True

    async def write(self, request: Any) -> None:
        if self._status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        try:
            await self._way.room()
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._raise_for_status()
        self._way.send_up(copied(request))

    async def read(self) -> Any:
        if self._status is not None and self.inbox.empty():
            self._raise_for_status()
            return EOF
        try:
            message = await self.inbox.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if message is EOF:
            self._raise_for_status()
        return message

    def _raise_for_status(self) -> None:
        if self._status is None or self._status[0] is grpc.StatusCode.OK:
            return
        code, details, trailing = self._status
        if code is grpc.StatusCode.CANCELLED and "Locally" in details:
            raise asyncio.CancelledError
        empty = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(code, empty, grpc.aio.Metadata(*trailing), details)

    async def code(self) -> grpc.StatusCode:
        return (await self._final())[0]

    async def details(self) -> str:
        return (await self._final())[1]

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*(await self._final())[2])

    async def _final(self) -> Status:
        await self._finished.wait()
        assert self._status is not None
        return self._status


class ServerContext:
    """What a handler gets: its requests, and the way to answer."""

    def __init__(self, way: Way) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.is_finished = False
        self._writing = asyncio.Lock()
        self._way = way

    def __aiter__(self) -> ServerContext:
        return self

    async def __anext__(self) -> Any:
        return await self.inbox.get()

    async def write(self, response: Any) -> None:
        if self._writing.locked():
            raise grpc.aio.InternalError("another write of this stream is under way")
        async with self._writing:
            await self._way.room()
        if self.is_finished:
            raise grpc.aio.InternalError("the client is gone")
        self._way.send_down(copied(response))

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any) -> None:
        self.finish((code, details, trailing_metadata))
        raise grpc.aio.AbortError

    def finish(self, status: Status) -> None:
        if not self.is_finished:
            self.is_finished = True
            self._way.send_down(status)
