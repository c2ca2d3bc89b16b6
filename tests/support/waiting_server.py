"""A service without models, served as all are, whose calls wait until a test lets them go on."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from outrider.errors import OutriderError
from outrider.protocol.channel import from_rpc_error
from outrider.serving.server import serve
from outrider.settings.options import ServerOptions
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc, target_pb2, target_pb2_grpc

NAME = "outrider.v1.GenerationService"


async def nothing() -> None:
    """To load."""


class Server:
    """A service whose texts, and whose loading, wait until the test lets them go on."""

    def __init__(self, **options: Any) -> None:
        self.options = ServerOptions(**options)
        self.failure: OutriderError | None = None  # what `check` raises
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.left = asyncio.Event()
        self.load: Callable[[], Any] = nothing
        self.address = ""
        self.task: asyncio.Task[None] | None = None

    @staticmethod
    def add_to_server(servicer: Any, server: grpc.aio.Server) -> None:
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
        target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server)

    async def Generate(self, request: Any, context: Any) -> pb.GenerateResponse:
        self.entered.set()
        await self.go_on.wait()
        return pb.GenerateResponse(text="done")

    async def GenerateStream(self, request: Any, context: Any) -> None:
        piece = pb.TextPiece(text="x" * 50_000)
        try:
            for _ in range(1000):
                await context.write(pb.GenerateStreamResponse(pieces=[piece]))
        finally:
            self.left.set()

    async def GetServerInfo(self, request: Any, context: Any) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse()

    async def Verify(self, requests: AsyncIterator[Any], context: Any) -> None:
        self.entered.set()
        async for _ in requests:
            await self.go_on.wait()
            await context.write(target_pb2.VerifyResponse())

    async def GetModelInfo(self, request: Any, context: Any) -> Any: ...

    async def GetTokenizer(self, request: Any, context: Any) -> Any: ...

    async def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None: ...

    def metrics(self) -> list[Any]:
        return []

    async def run(self) -> None:
        await serve(self.options, "GenerationService", self.add_to_server, self, self.load)


@asynccontextmanager
async def running(
    capfd: pytest.CaptureFixture[str], server: Server
) -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
    server.task = asyncio.create_task(server.run())
    line = ""
    while not line:
        await asyncio.sleep(0.001)
        assert not server.task.done(), server.task.exception()
        line = capfd.readouterr().out
    address = line.removeprefix("ready ").strip()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield server, channel
    finally:
        if not server.task.done():
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait([server.task])


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("outrider.serving.health.CHECK_SECONDS", 0.005)
    monkeypatch.setattr("outrider.serving.shutdown._FLUSH_SECONDS", 0.1)
    # A second signal must not end the tests.
    monkeypatch.setattr("outrider.serving.shutdown.exit_at_once", lambda number: None)
    yield
    gc.unfreeze()  # what a server keeps from the collector is the tests', too


async def reason_of(call: Awaitable[Any]) -> OutriderError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async with asyncio.timeout(30):
            await call
    return from_rpc_error(caught.value)
