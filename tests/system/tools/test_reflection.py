"""What generic clients (ghz, grpcurl) learn of a service by asking it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2

from draft_service.servicer import DraftServicer
from orchestrator.servicer import GenerationServicer
from outrider.v1 import draft_pb2_grpc, generation_pb2_grpc, target_pb2_grpc
from target_service.servicer import TargetServicer
from tests.support.system import serving

SERVICES: dict[str, Callable[[grpc.aio.Server], None]] = {
    "outrider.v1.GenerationService": lambda server: (
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(), server)
    ),
    "outrider.v1.DraftService": lambda server: draft_pb2_grpc.add_DraftServiceServicer_to_server(
        DraftServicer(), server
    ),
    "outrider.v1.TargetService": lambda server: target_pb2_grpc.add_TargetServiceServicer_to_server(
        TargetServicer(), server
    ),
}

Ask = Callable[..., Any]


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["v1", "v1alpha"])
async def ask(service: str, request: pytest.FixtureRequest) -> AsyncIterator[Ask]:
    """Asks the reflection of this service, in this version: `await ask(list_services="")`."""
    async with (
        serving(SERVICES[service], name=service.rpartition(".")[2]) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = channel.stream_stream(
            f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

        async def ask(**question: str) -> reflection_pb2.ServerReflectionResponse:
            questions = [reflection_pb2.ServerReflectionRequest(**question)]
            [answer] = [answer async for answer in call(iter(questions))]
            return answer

        yield ask


def service_file(answer: reflection_pb2.ServerReflectionResponse) -> str:
    """The first file of an answer, which is the one that was asked for."""
    serialized = answer.file_descriptor_response.file_descriptor_proto[0]
    return descriptor_pb2.FileDescriptorProto.FromString(serialized).name


async def test_every_method_is_found_by_its_full_name(service: str, ask: Ask) -> None:
    descriptor = descriptor_pool.Default().FindServiceByName(service)
    assert len(descriptor.methods) >= 2
    for symbol in (service, *(method.full_name for method in descriptor.methods)):
        assert service_file(await ask(file_containing_symbol=symbol)) == descriptor.file.name


async def test_what_there_is_not_is_not_found(service: str, ask: Ask) -> None:
    for symbol in (f"{service}.NoSuchMethod", f"{service}/GetModelInfo", "outrider.v1.Nothing", ""):
        answer = await ask(file_containing_symbol=symbol)
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_all_services_that_are_listed_are_found(service: str, ask: Ask) -> None:
    listed = [one.name for one in (await ask(list_services="")).list_services_response.service]
    reflection = "grpc.reflection.v1alpha.ServerReflection"
    assert sorted(listed) == ["grpc.health.v1.Health", reflection, service]
    for name in listed:
        assert service_file(await ask(file_containing_symbol=name))
