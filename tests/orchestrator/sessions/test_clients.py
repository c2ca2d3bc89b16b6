"""How an orchestrator meets services that do not fit, or are not what they are taken for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from orchestrator.sessions.clients import DraftClient, TargetClient
from outrider import __version__
from outrider.errors import (
    ConfigurationError,
    InvalidRequest,
    ModelLoading,
    ServiceUnavailable,
    WireVersionMismatch,
    WrongService,
)
from outrider.protocol.channel import from_rpc_error
from outrider.protocol.codec import model_info_from_wire, model_info_to_wire
from outrider.protocol.messages import WIRE_VERSION, ModelInfo
from outrider.serving.calls import RunningCalls
from outrider.serving.server import interceptors
from outrider.v1 import common_pb2, draft_pb2_grpc, target_pb2_grpc

INFO = ModelInfo("it", max_context_length=5, vocab_size=9, version="9.9", num_threads=3)


class Model(target_pb2_grpc.TargetServiceServicer, draft_pb2_grpc.DraftServiceServicer):
    """Says what it is told to."""

    def __init__(self, response: common_pb2.GetModelInfoResponse) -> None:
        self.response = response

    async def GetModelInfo(self, request: Any, context: Any) -> common_pb2.GetModelInfoResponse:
        return self.response

    async def Propose(self, requests: Any, context: Any) -> None:
        await anext(requests)


@asynccontextmanager
async def serving(
    name: str,
    add: Callable[[Any, grpc.aio.Server], None],
    wire_version: int = WIRE_VERSION,
    kind: type[Model] = Model,
) -> AsyncIterator[str]:
    response = model_info_to_wire(INFO)
    response.wire_version = wire_version
    server = grpc.aio.server(interceptors=interceptors(None, RunningCalls(), f"outrider.v1.{name}"))
    add(kind(response), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_bytes_in_a_session_that_are_no_message_are_an_invalid_request() -> None:
    add = draft_pb2_grpc.add_DraftServiceServicer_to_server
    async with serving("DraftService", add) as address, grpc.aio.insecure_channel(address) as raw:
        call = raw.stream_stream("/outrider.v1.DraftService/Propose")(iter([b"\xff\xff"]))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert isinstance(from_rpc_error(caught.value), InvalidRequest)


def test_what_a_service_says_of_itself_comes_back() -> None:
    assert model_info_from_wire(model_info_to_wire(INFO)) == INFO


@pytest.mark.parametrize("wire_version", [0, WIRE_VERSION + 1])
async def test_a_service_of_another_release_is_refused_by_name(wire_version: int) -> None:
    add = draft_pb2_grpc.add_DraftServiceServicer_to_server
    async with serving("DraftService", add, wire_version) as address:
        client = DraftClient(address)
        with pytest.raises(WireVersionMismatch) as caught:
            await client.wait_until_loaded(60)
        await client.close()
    assert caught.value.message == (
        f"the draft at {address} is Outrider 9.9, with wire version {wire_version}, and this is "
        f"Outrider {__version__}, with wire version {WIRE_VERSION}: run the same release"
    )


async def test_one_of_the_same_wire_version_fits_whatever_its_release() -> None:
    add = target_pb2_grpc.add_TargetServiceServicer_to_server
    async with serving("TargetService", add) as address:
        client = TargetClient(address)
        assert await client.wait_until_loaded(60) == INFO
        await client.close()


async def test_why_it_is_waited_for_is_told_by_name() -> None:
    class Loading(Model):
        async def GetModelInfo(self, request: Any, context: Any) -> common_pb2.GetModelInfoResponse:
            if not told:
                raise ModelLoading("still")
            return self.response

    told: list[ServiceUnavailable] = []
    add = target_pb2_grpc.add_TargetServiceServicer_to_server
    async with serving("TargetService", add, kind=Loading) as address:
        client = TargetClient(address)
        assert await client.wait_until_loaded(60, told.append) == INFO
        await client.close()
    assert [(type(why), why.message) for why in told] == [
        (ModelLoading, f"the target at {address}: still")
    ]


async def test_swapped_services_are_told_by_name() -> None:
    add = draft_pb2_grpc.add_DraftServiceServicer_to_server
    async with serving("DraftService", add) as address:
        client = TargetClient(address)
        with pytest.raises(WrongService) as caught:
            await client.wait_until_loaded(60)
        await client.close()
    assert caught.value.message == (
        f"the target at {address}: this is outrider.v1.DraftService, not outrider.v1.TargetService"
    )


async def test_an_address_that_cannot_be_dialled_is_not_waited_for() -> None:
    with pytest.raises(ConfigurationError, match="names no port"):
        TargetClient("localhost")
