"""gRPC streams in memory, whose deliveries a test orders, and whose ends it can cut.

Each direction of a stream is a `Link`: it keeps its order, as gRPC does, and waits for
nobody else's. What travels, and when passes of the models begin and end, is a list of
possible events of which a seeded generator takes one after the other, so a schedule
can be repeated. Nothing here waits for a clock: when no event is possible and somebody
still waits, the test has found a hang.
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

from outrider.serving.error_interceptors import ErrorInterceptor
from tests.support.fake_stream import ClientCall, ServerContext, Status

Handler = Callable[[Any, Any], Awaitable[None]]

# How fast a link or an engine is in one schedule, compared with others.
_RATES = (0.02, 0.3, 1.0, 6.0)

# How often a writer has to wait.
_FULL = 0.2


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


@dataclass
class Link:
    """One direction of a stream: what is on its way, oldest first."""

    arrive: Callable[[Any], None]
    rate: float
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
        """What can happen next, with its rate: a delivery, or room for a message."""
        links = [link for stream in self.streams for link in (stream.up, stream.down)]
        self._full = [room for room in self._full if not room.done()]
        return [
            *((link.rate, link.deliver) for link in links if link.items),
            *((1.0, partial(room.set_result, None)) for room in self._full),
        ]

    async def room(self) -> None:
        """Waits, now and then, as writers do who are faster than the other end."""
        if self.random.random() < _FULL:
            self._full.append(asyncio.get_running_loop().create_future())
            await self._full[-1]

    def rate(self) -> float:
        return self.random.choice(_RATES)


class Stream:
    """A call, its handler, and the two links between them."""

    def __init__(self, network: Network, service: str) -> None:
        self.service = service
        self.room = network.room
        self._network = network
        self.up = Link(self._arrive_at_server, network.rate())
        self.down = Link(self._arrive_at_client, network.rate())
        self.call = ClientCall(self)
        self._context = ServerContext(self)
        self._handler: asyncio.Task[None] | None = None
        self.up.items.append(None)  # opens the stream at the server

    def send_up(self, message: Any) -> None:
        self.up.items.append(message)
        self._note(Point.REQUEST_SENT)

    def send_down(self, message: Any) -> None:
        self.down.items.append(message)
        if not isinstance(message, tuple):
            self._note(Point.TABLE_SENT if _is_table(message) else Point.RESPONSE_SENT)

    def cancel(self) -> None:
        self.down.items.clear()
        self.up.items = deque([None])
        self.up.arrive = lambda _: self._end_handler()
        self._note(Point.CLOSED)

    def cut(self) -> None:
        """Both ends lose the other; what was on its way back arrives or does not."""
        self._end_handler()
        while self.down.items and self._network.random.random() < 0.5:
            self.down.items.pop()
        lost: Status = (grpc.StatusCode.UNAVAILABLE, "connection reset", ())
        self.down.items.append(lost)

    def _note(self, point: Point) -> None:
        self._network.note(self.service, point)

    def _arrive_at_server(self, item: Any) -> None:
        if self.service in self._network.killed:
            self.cut()
        elif self._handler is None:
            self._handler = asyncio.create_task(self._handle())
        else:
            self._note(Point.REQUEST_ARRIVED)
            self._context.inbox.put_nowait(item)

    def _arrive_at_client(self, item: Any) -> None:
        if isinstance(item, tuple):
            self.call.finish(item)
            return
        self.call.inbox.put_nowait(item)
        self._note(Point.TABLE_RECEIVED if _is_table(item) else Point.RESPONSE_RECEIVED)

    def _end_handler(self) -> None:
        """The handler sees that its client is gone, or is gone itself."""
        self.up.items.clear()
        self._context.is_finished = True
        if self._handler is not None:
            self._handler.cancel()

    async def _handle(self) -> None:
        try:
            await self._network.handlers[self.service](self._context, self._context)
            self._context.finish((grpc.StatusCode.OK, "", ()))
        except grpc.aio.AbortError:
            pass  # `abort` has sent the status
        except asyncio.CancelledError:
            self._context.finish((grpc.StatusCode.CANCELLED, "cancelled", ()))
        except Exception as error:
            self._context.finish((grpc.StatusCode.UNKNOWN, repr(error), ()))


def _is_table(message: Any) -> bool:
    """Whether a response is an update of the speculation cache."""
    return "predrafts" in message.DESCRIPTOR.fields_by_name and message.HasField("predrafts")


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
