"""Errors on their way to clients, over a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from outrider import AsyncClient, errors
from outrider.errors import InvalidRequest, OutriderError
from outrider.protocol.channel import from_rpc_error
from outrider.serving.calls import RunningCalls
from outrider.serving.server import OPTIONS, interceptors
from outrider.v1 import draft_pb2, draft_pb2_grpc, generation_pb2_grpc
from outrider.v1 import generation_pb2 as pb

SERVICE = "outrider.v1.GenerationService"


class Failing(generation_pb2_grpc.GenerationServiceServicer):
    error: Exception = OutriderError("")

    async def Generate(self, request: Any, context: Any) -> pb.GenerateResponse:
        raise self.error


@pytest.fixture
def failing() -> Failing:
    return Failing()


@pytest.fixture
async def address(failing: Failing) -> AsyncIterator[str]:
    server = grpc.aio.server(
        interceptors=interceptors(None, RunningCalls(), SERVICE), options=OPTIONS
    )
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(failing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("character", ["x", "\n", "\0", "é", "🦊", "\ud800"])
async def test_whatever_an_error_says_its_class_arrives(
    character: str, failing: Failing, address: str
) -> None:
    failing.error = InvalidRequest("role " + character * 20_000, role=character * 20_000)
    async with AsyncClient(address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.generate("hi")
    assert caught.value.message.startswith("role ")
    assert caught.value.message.endswith("...")
    assert len(caught.value.message.encode()) < 1100
    assert caught.value.metadata["role"].endswith("...")


async def test_unexpected_errors_stay_in_the_log(failing: Failing, address: str) -> None:
    failing.error = ValueError("secret")
    async with AsyncClient(address) as client:
        with pytest.raises(OutriderError, match=r"^internal error$"):
            await client.generate("hi")


async def test_a_call_of_another_service_says_which_one_this_is(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = draft_pb2_grpc.DraftServiceStub(channel)
        for call in (
            stub.GetModelInfo(draft_pb2.ProposeRequest()),
            stub.Propose(iter([draft_pb2.ProposeRequest()])).read(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert caught.value.details() == f"this is {SERVICE}, not outrider.v1.DraftService"


async def test_an_unknown_method_of_this_service_and_services_of_others_are_left_to_grpc(
    address: str,
) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        for method in (f"/{SERVICE}/Telepathy", "/other.Service/Method", "/outrider.v1", "/"):
            with pytest.raises(grpc.aio.AioRpcError, match="Method not found!"):
                await channel.unary_unary(method)(b"")


@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"])
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_bytes_that_are_no_message_are_an_invalid_request(
    method: str, message: bytes, address: str
) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_stream(f"/{SERVICE}/{method}")(message).read()
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.message.startswith("the request cannot be decoded")


async def test_what_no_service_takes_has_a_reason(address: str) -> None:
    async with AsyncClient(address) as client:
        with pytest.raises(errors.MessageTooLarge, match="exceeds the limit of 33554432"):
            await client.generate("x" * 34_000_000)
