"""One id for a request in the logs of all three services, and for its client."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import grpc
import pytest

from outrider.errors import InvalidRequest
from outrider.protocol.channel import from_rpc_error
from outrider.protocol.request_id import REQUEST_ID_KEY, request_id
from outrider.v1 import generation_pb2
from tests.support.system import System, running_system
from tests.system.texts.test_protocol import all_slots_free


@pytest.fixture
async def system(tiny_models: Callable[..., Path]) -> AsyncIterator[System]:
    async with running_system(tiny_models("llama"), tiny_models("llama")) as system:
        yield system


class Heard(logging.Handler):
    """Ends of calls, each with the id that was current."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = record.__dict__
        self.calls.append((fields["method"], fields["code"], request_id.get()))


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[Heard]:
    caplog.set_level(logging.INFO, "outrider.serving.calls")
    handler, logger = Heard(), logging.getLogger("outrider.serving.calls")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


async def test_the_clients_id_is_in_all_logs_and_comes_back(system: System, heard: Heard) -> None:
    request = generation_pb2.GenerateRequest(
        prompt="the cat",
        max_new_tokens=4,
        num_speculative_tokens=2,
    )
    call = system.generation.Generate(request, metadata=((REQUEST_ID_KEY, "my-request/7"),))
    await call
    assert dict(await call.trailing_metadata())[REQUEST_ID_KEY] == "my-request/7"
    assert await all_slots_free(system)
    await system.generate("the dog", max_new_tokens=1)  # the sessions before have been logged
    mine = {(method, code) for method, code, current in heard.calls if current == "my-request/7"}
    assert {method for method, _ in mine} == {"Generate", "Propose", "Verify"}
    assert ("Generate", "OK") in mine


async def test_a_request_without_an_id_gets_one(system: System) -> None:
    request = generation_pb2.GenerateRequest(prompt="the cat", max_new_tokens=1)
    ids = set()
    for metadata in ((), (), ((REQUEST_ID_KEY, "not an id {}"),), ((REQUEST_ID_KEY, "x" * 999),)):
        call = system.generation.Generate(request, metadata=metadata)
        await call
        ids.add(dict(await call.trailing_metadata())[REQUEST_ID_KEY])
    assert len(ids) == 4
    assert all(len(current) == 16 for current in ids)


async def test_an_error_has_the_id_beside_its_reason(system: System, heard: Heard) -> None:
    request = generation_pb2.GenerateRequest(prompt="")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await system.generation.Generate(request, metadata=((REQUEST_ID_KEY, "bad-one"),))
    assert dict(caught.value.trailing_metadata())[REQUEST_ID_KEY] == "bad-one"
    assert isinstance(from_rpc_error(caught.value), InvalidRequest)
    assert ("Generate", "INVALID_ARGUMENT", "bad-one") in heard.calls
