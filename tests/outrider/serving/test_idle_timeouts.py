"""Streams on which the client does not move."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import suppress
from typing import Any

import grpc
import pytest

from outrider.errors import IdleTimeout
from outrider.serving.calls import _Requests, _TimedContext
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc, target_pb2, target_pb2_grpc
from tests.support.waiting_server import Server, quickly, reason_of, running

__all__ = ["quickly"]  # a fixture
pytestmark = pytest.mark.usefixtures("quickly")


def verify(channel: grpc.aio.Channel) -> Any:
    stub: Any = target_pb2_grpc.TargetServiceStub(channel)
    return stub.Verify()


async def test_a_write_may_outlast_its_handler() -> None:
    """What a session predrafts is written beside its handler, which the client may end."""
    written = asyncio.Event()

    class Context:
        async def write(self, message: object) -> None:
            await written.wait()

    async with asyncio.timeout(None) as limit:
        write = asyncio.create_task(_TimedContext(Context(), limit, 1.0).write("predrafted"))  # type: ignore[arg-type]
        await asyncio.sleep(0)
    written.set()
    await write


async def test_only_the_clients_time_runs_and_anew_whenever_it_moves() -> None:
    class Loop:
        """Its clock stands, and its timers do not run by themselves."""

        now, when = 100.0, 0.0

        def time(self) -> float:
            return self.now

        def call_at(self, when: float, look: object) -> None:
            self.when = when

    class Limit:
        when: float | None = None

        def reschedule(self, when: float | None) -> None:
            self.when = when

    limit, loop = Limit(), Loop()
    context = _TimedContext(object(), limit, 5.0)  # type: ignore[arg-type]
    context.close()
    context._loop = loop  # type: ignore[assignment]

    def look_at(now: float) -> float | None:
        """When the next look is due; None: the limit has passed."""
        loop.now = now
        context._look()
        return None if limit.when == now else loop.when

    context.note(+1)
    assert look_at(104.0) == 105.0
    context.note(-1)  # the client has sent, and the server works, however long
    assert look_at(200.0) == 205.0
    context.note(+1)
    loop.now = 202.0
    context.note(+1)  # something is written meanwhile,
    loop.now = 203.0
    context.note(-1)  # and taken
    assert look_at(205.0) == 208.0
    assert look_at(208.0) is None


async def test_a_silent_session_is_ended(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(capfd, Server(idle_seconds=0.05)) as (_, channel):
        error = await reason_of(verify(channel).read())
    assert isinstance(error, IdleTimeout)
    assert error.metadata == {"seconds": "0.05"}
    gc.collect()  # what waited for its next message has failed, too, and is not told of
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_reader_that_stops_reading_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(capfd, Server(idle_seconds=0.1)) as (server, channel):
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.GenerateStream(pb.GenerateRequest(prompt="hi"))
        async with asyncio.timeout(30):
            await server.left.wait()
        error = await reason_of(drained(call))  # behind what was on its way already
    assert isinstance(error, IdleTimeout)


async def drained(call: Any) -> None:
    async for _ in call:
        pass


async def test_what_a_cancelled_handler_waited_for_is_not_cancelled(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC frees a receive operation once it has ended, not if who awaits it is cancelled."""
    endings: asyncio.Queue[str] = asyncio.Queue()
    receive = _Requests._next

    async def noted(requests: _Requests) -> Any:
        try:
            request = await receive(requests)
        except BaseException as error:
            endings.put_nowait(repr(error))
            raise
        endings.put_nowait("a request" if request else "the end")
        return request

    monkeypatch.setattr(_Requests, "_next", noted)
    async with running(capfd, Server()) as (server, channel):
        server.go_on.set()
        call = verify(channel)
        await call.write(target_pb2.VerifyRequest())
        await call.read()
        call.cancel()
        async with asyncio.timeout(30):
            assert [await endings.get(), await endings.get()] == ["a request", "the end"]


async def test_what_is_written_behind_the_end_of_its_handler_is_no_mistake(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As what a draft predrafts is, whose session is closed meanwhile."""
    tasks: list[asyncio.Task[None]] = []

    async def verify_and_go(requests: Any, context: Any) -> None:
        async def write_late() -> None:
            await server.go_on.wait()
            with suppress(grpc.aio.BaseError, asyncio.InvalidStateError):
                await context.write(target_pb2.VerifyResponse())

        tasks.append(asyncio.create_task(write_late()))
        async for _ in requests:
            pass

    server = Server()
    server.Verify = verify_and_go  # type: ignore[method-assign]
    async with running(capfd, server) as (_, channel):
        call = verify(channel)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        server.go_on.set()
        await asyncio.wait(tasks)
        assert tasks[0].exception() is None
