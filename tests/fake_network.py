"""gRPC streams in memory, whose deliveries a test orders, and whose ends it can cut.

Each direction of a stream is a `Link`: it keeps its order, as gRPC does, and waits for
nobody else's. What travels, and when passes of the models begin and end, is a list of
possible events of which a seeded generator takes one after the other, so a schedule
can be repeated. Nothing here waits for a clock: when no event is possible and somebody
still waits, the test has found a hang. (Who finds the draft full tries again by the
clock, so with more sessions than slots a schedule is only much the same.)
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import grpc
from grpc.aio import EOF

from outrider.server import ErrorInterceptor

Handler = Callable[[Any, Any], Awaitable[None]]
Status = tuple[grpc.StatusCode, str, tuple[tuple[str, Any], ...]]

# How fast a link or an engine is in one schedule, compared with others.
_PACES = (0.02, 0.3, 1.0, 6.0)

# How often a writer has to wait.
_FULL = 0.2

_CLOSE = object()  # the client writes no more


class Point(enum.Enum):
    """Where a stream can be hit."""

    OPENED = enum.auto()
    REQUEST_SENT = enum.auto()
    REQUEST_ARRIVED = enum.auto()
    RESPONSE_SENT = enum.auto()
    TABLE_SENT = enum.auto()
    RESPONSE_RECEIVED = enum.auto()
    TABLE_RECEIVED = enum.auto()
    CLOSED = enum.auto()


def _is_table(message: Any) -> bool:
    return "prepared" in message.DESCRIPTOR.fields_by_name and bool(message.prepared)


@dataclass
class Link:
    """One direction of a stream: what is on its way, oldest first."""

    arrive: Callable[[Any], None]
    pace: float
    items: deque[Any] = field(default_factory=deque)

    def deliver(self) -> None:
        self.arrive(self.items.popleft())


class Network:
    """All streams to both services.

    `on_point` is called with service, point and how often it was reached before.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.on_point: Callable[[str, Point, int], None] = lambda *_: None
        self.handlers: dict[str, Handler] = {}
        self.killed: set[str] = set()
        self.streams: list[Stream] = []
        self._full: list[asyncio.Future[None]] = []
        self._counts: Counter[tuple[str, Point]] = Counter()

    def open(self, service: str) -> ClientCall:
        stream = Stream(self, service)
        self.streams.append(stream)
        self.note(service, Point.OPENED)
        return stream.call

    def kill(self, service: str) -> None:
        """The service is gone: its streams break at both ends, and no new one gets through."""
        self.killed.add(service)
        for stream in self.streams:
            if stream.service == service:
                stream.cut()

    def note(self, service: str, point: Point) -> None:
        count = self._counts[service, point]
        self._counts[service, point] += 1
        self.on_point(service, point, count)

    def events(self) -> list[tuple[float, Callable[[], None]]]:
        """What can happen next, with its pace: a delivery, or room for a message."""
        links = [link for stream in self.streams for link in (stream.up, stream.down)]
        self._full = [room for room in self._full if not room.done()]
        return [
            *((link.pace, link.deliver) for link in links if link.items),
            *((1.0, partial(room.set_result, None)) for room in self._full),
        ]

    async def room(self) -> None:
        """Waits, now and then, as writers do who are faster than the other end."""
        if self.random.random() < _FULL:
            self._full.append(asyncio.get_running_loop().create_future())
            await self._full[-1]

    def pace(self) -> float:
        return self.random.choice(_PACES)


class Stream:
    """A call, its handler, and the two links between them."""

    def __init__(self, network: Network, service: str) -> None:
        self.network = network
        self.service = service
        self.up = Link(self._arrive_at_server, network.pace())
        self.down = Link(self._arrive_at_client, network.pace())
        self.call = ClientCall(self)
        self.context = ServerContext(self)
        self.handler: asyncio.Task[None] | None = None
        self.up.items.append(None)  # opens the stream at the server

    def _arrive_at_server(self, item: Any) -> None:
        if self.service in self.network.killed:
            self.cut()
        elif self.handler is None:
            self.handler = asyncio.create_task(self._handle())
        else:
            if item is not _CLOSE:
                self.network.note(self.service, Point.REQUEST_ARRIVED)
            self.context.inbox.put_nowait(item)

    async def _handle(self) -> None:
        try:
            await self.network.handlers[self.service](self.context, self.context)
            self.context.finish((grpc.StatusCode.OK, "", ()))
        except grpc.aio.AbortError:
            pass  # `abort` has sent the status
        except asyncio.CancelledError:
            self.context.finish((grpc.StatusCode.CANCELLED, "cancelled", ()))
        except Exception as error:
            self.context.finish((grpc.StatusCode.UNKNOWN, repr(error), ()))

    def _arrive_at_client(self, item: Any) -> None:
        if isinstance(item, tuple):
            self.call.finish(item)
            return
        point = Point.TABLE_RECEIVED if _is_table(item) else Point.RESPONSE_RECEIVED
        self.call.inbox.put_nowait(item)
        self.network.note(self.service, point)

    def end_handler(self) -> None:
        """The handler sees that its client is gone, or is gone itself."""
        self.up.items.clear()
        self.context.is_finished = True
        if self.handler is not None:
            self.handler.cancel()

    def cut(self) -> None:
        """Both ends lose the other; what was on its way back arrives or does not."""
        self.end_handler()
        while self.down.items and self.network.random.random() < 0.5:
            self.down.items.pop()
        self.down.items.append((grpc.StatusCode.UNAVAILABLE, "connection reset", ()))


class ClientCall:
    """What `grpc.aio.StreamStreamCall` does, as far as sessions use it."""

    def __init__(self, stream: Stream) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._stream = stream
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
        self._stream.network.note(self._stream.service, Point.CLOSED)
        self._stream.down.items.clear()
        # It reaches the server some time, but before any other news of this stream.
        self._stream.up.items.clear()
        self._stream.up.items.append(None)
        self._stream.up.arrive = lambda _: self._stream.end_handler()
        return True

    async def write(self, request: Any) -> None:
        if self._status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")
        try:
            await self._stream.network.room()
        except asyncio.CancelledError:
            self.cancel()
            raise
        self._raise_for_status()
        self._stream.up.items.append(type(request).FromString(request.SerializeToString()))
        self._stream.network.note(self._stream.service, Point.REQUEST_SENT)

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

    def __init__(self, stream: Stream) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.is_finished = False
        self._writing = asyncio.Lock()
        self._stream = stream

    def __aiter__(self) -> ServerContext:
        return self

    async def __anext__(self) -> Any:
        message = await self.inbox.get()
        if message is _CLOSE:
            raise StopAsyncIteration
        return message

    async def write(self, response: Any) -> None:
        if self._writing.locked():
            raise grpc.aio.InternalError("another write of this stream is under way")
        async with self._writing:
            await self._stream.network.room()
        if self.is_finished:
            raise grpc.aio.InternalError("the client is gone")
        self._stream.down.items.append(type(response).FromString(response.SerializeToString()))
        point = Point.TABLE_SENT if _is_table(response) else Point.RESPONSE_SENT
        self._stream.network.note(self._stream.service, point)

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: Any) -> None:
        self.finish((code, details, trailing_metadata))
        raise grpc.aio.AbortError

    def finish(self, status: Status) -> None:
        if not self.is_finished:
            self.is_finished = True
            self._stream.down.items.append(status)


async def guarded(method: str, handler: Any) -> Handler:
    """`handler` behind the servers' interceptor, which turns exceptions into statuses."""

    class Details:
        method = ""

    Details.method = method

    async def continuation(_: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(handler)

    details: Any = Details()
    wrapped = await ErrorInterceptor().intercept_service(continuation, details)
    behaviour: Handler = wrapped.stream_stream
    return behaviour
