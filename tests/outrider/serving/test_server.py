"""A server from its start to its end: health, drain, signals. As a process: `test_process.py`."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from outrider.errors import EngineFailed, ServiceUnavailable
from outrider.protocol.interceptors import Method
from outrider.serving.calls import RunningCalls
from outrider.serving.health import Health
from outrider.serving.shutdown import Stopped, drain
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc
from tests.support.waiting_server import NAME, Server, quickly, reason_of, running

__all__ = ["quickly"]  # a fixture
pytestmark = pytest.mark.usefixtures("quickly")

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def watch(channel: grpc.aio.Channel, name: str = NAME) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest(service=name))


async def read_status(call: Any) -> int:
    async with asyncio.timeout(30):
        response = await call.read()
    return -1 if response is grpc.aio.EOF else int(response.status)


def generate(channel: grpc.aio.Channel) -> Any:
    stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
    return stub.Generate(pb.GenerateRequest(prompt="hi"))


async def test_health_follows_what_can_be_served_both_ways(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(capfd, Server()) as (server, channel):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watches = [watch(channel), watch(channel, "")]
        for call in watches:
            assert await read_status(call) == SERVING
        for _ in range(2):
            server.failure = ServiceUnavailable("the target is away")
            for call in watches:
                assert await read_status(call) == NOT_SERVING
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
            server.failure = None
            for call in watches:
                assert await read_status(call) == SERVING
    assert [r.getMessage() for r in caplog.records if r.name == "outrider.serving.health"] == [
        "not serving: the target is away",
        "serving again",
    ] * 2


async def test_what_was_loaded_is_not_looked_through_for_garbage(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It takes a quarter of a second where torch is loaded, in which no call is answered."""
    assert gc.get_freeze_count() == 0
    num_objects = len(gc.get_objects())
    async with running(capfd, Server()):
        assert gc.get_freeze_count() > 0.9 * num_objects


async def test_health_knows_no_other_service(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(capfd, Server()) as (_, channel):
        assert await read_status(watch(channel, "other")) == UNKNOWN
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_streams_of_monitors_do_not_hold_up_the_end(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With an hour to drain, which only calls of ours may take."""
    async with running(capfd, Server(drain_seconds=3600)) as (server, channel):
        call, other = watch(channel), watch(channel, "other")
        assert [await read_status(call), await read_status(other)] == [SERVING, UNKNOWN]
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        listing = reflection.ServerReflectionInfo()
        await listing.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
        await listing.read()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await read_status(call) == NOT_SERVING
        assert server.task is not None
        async with asyncio.timeout(30):
            await server.task


async def test_a_call_that_runs_may_end_while_the_server_drains(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with running(capfd, Server(drain_seconds=3600)) as (server, channel):
        call, watching = generate(channel), watch(channel)
        await server.entered.wait()
        assert await read_status(watching) == SERVING
        os.kill(os.getpid(), signal.SIGTERM)
        assert await read_status(watching) == NOT_SERVING
        server.go_on.set()
        async with asyncio.timeout(30):
            assert (await call).text == "done"


async def test_a_call_that_is_cut_off_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(capfd, Server(drain_seconds=0)) as (server, channel):
        call = generate(channel)
        await server.entered.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        error = await reason_of(call)
    assert isinstance(error, ServiceUnavailable)
    assert error.message == "the service was shut down before the call was done"


async def test_a_call_whose_request_arrives_late_is_not_cut_off() -> None:
    """A call counts from where its handler begins, and gRPC has taken it before."""
    calls, order = RunningCalls(), list[str]()
    began, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class GrpcServer:
        async def stop(self, grace: float | None) -> None:
            await began.wait()
            if grace is None:
                order.append("stops")
                ended.set()
            await ended.wait()

    async def arrive() -> None:
        with calls.around(Method("", "", ""), object()):  # type: ignore[arg-type]
            began.set()
            await go_on.wait()
            order.append("answers")

    async def wait_until_none(seconds: float) -> bool:
        order.append("waits")
        if calls.num_running:
            go_on.set()
        return await RunningCalls.wait_until_none(calls, seconds)

    calls.wait_until_none = wait_until_none  # type: ignore[method-assign]
    server: Any = GrpcServer()
    async with asyncio.timeout(30):
        await asyncio.gather(drain(server, Health(NAME), calls, 3600), arrive())
    assert order == ["waits", "waits", "answers", "stops"]


async def test_a_second_signal_ends_it_at_once(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    monkeypatch.setattr("outrider.serving.shutdown.exit_at_once", ended.set_result)
    async with running(capfd, Server(drain_seconds=3600)) as (server, channel):
        call = generate(channel)
        await server.entered.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(30):
            assert await ended == signal.SIGINT
        server.go_on.set()
        await call


async def test_an_engine_that_failed_ends_the_server(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(capfd, Server(drain_seconds=3600)) as (server, channel):
        call, watching = generate(channel), watch(channel)
        await server.entered.wait()
        assert await read_status(watching) == SERVING
        server.failure = EngineFailed("no device")
        assert await read_status(watching) == NOT_SERVING
        assert isinstance(await reason_of(call), ServiceUnavailable)
        assert server.task is not None
        with pytest.raises(EngineFailed, match="no device"):
            await server.task


async def test_a_signal_ends_what_loads() -> None:
    server, loads = Server(), asyncio.Event()

    async def load() -> None:
        loads.set()
        await asyncio.Event().wait()

    server.load = load
    task = asyncio.create_task(server.run())
    await loads.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped) as caught:
        async with asyncio.timeout(30):
            await task
    assert caught.value.number == signal.SIGTERM
