"""Streams of text, piece by piece."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
    suppress,
)
from typing import Any

import grpc

from outrider.client.results import Generation, generation_from_wire, piece_from_wire
from outrider.errors import Cancelled, ClientMisuse
from outrider.protocol.channel import from_rpc_error
from outrider.protocol.messages import TextPiece
from outrider.v1 import generation_pb2 as pb


@contextmanager
def own_errors() -> Iterator[None]:
    """Context manager that converts gRPC's exceptions for failed calls to OutriderError."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError:
        # gRPC also raises it for a call that `close` ended, where the task was not cancelled.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Cancelled("the stream or the client was closed") from None


class _Stream:
    """The base of both kinds of streams.

    A stream is in no cycle of references, so that the call ends, and the services free its
    slots, as soon as the last reference to the stream goes.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._pieces: deque[TextPiece] = deque()
        self._result: Generation | None = None

    @property
    def result(self) -> Generation:
        """The whole generation. Raises RuntimeError before the stream has ended."""
        if self._result is None:
            raise RuntimeError("the stream has not ended yet")
        return self._result

    def close(self) -> None:
        """Cancels the rest of the call; both services free their slots."""
        self._call.cancel()

    def __del__(self) -> None:
        with suppress(RuntimeError):  # the call's event loop is closed: so is the call
            self.close()

    def _take(self, message: pb.GenerateStreamResponse) -> None:
        if message.HasField("result"):
            self._result = generation_from_wire(message.result)
        self._pieces.extend(map(piece_from_wire, message.pieces))


class GenerationStream(_Stream, Iterator[TextPiece], AbstractContextManager["GenerationStream"]):
    """Iterates over pieces of text as they are committed; then `result` is set.

    A `with` cancels the call if it is left before the last piece.

    Raises:
        OutriderError: the call fails; raised during iteration.
    """

    def __next__(self) -> TextPiece:
        while not self._pieces:
            with own_errors():
                message = next(self._call, None)
            if message is None:
                raise StopIteration
            self._take(message)
        return self._pieces.popleft()

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncGenerationStream(
    _Stream, AsyncIterator[TextPiece], AbstractAsyncContextManager["AsyncGenerationStream"]
):
    """`GenerationStream` for `async for` and `async with`."""

    def __init__(self, call: Any) -> None:
        super().__init__(call)
        self._loop = asyncio.get_running_loop()

    async def __anext__(self) -> TextPiece:
        if asyncio.get_running_loop() is not self._loop:
            raise ClientMisuse("the stream belongs to another event loop")
        while not self._pieces:
            with own_errors():
                message = await self._call.read()
            if message is grpc.aio.EOF:
                raise StopAsyncIteration
            self._take(message)
        return self._pieces.popleft()

    async def __aexit__(self, *exc: object) -> None:
        self.close()
