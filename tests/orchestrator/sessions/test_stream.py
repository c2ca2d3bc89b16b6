"""A session's stream that the service refuses or ends at awkward moments."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from orchestrator.sessions.stream import SessionStream
from outrider.errors import IdleTimeout, ServiceUnavailable
from outrider.serving.error_interceptors import status_to_wire
from outrider.v1 import target_pb2

LOST = grpc.aio.AioRpcError(
    grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "Internal error from Core"
)
idle = status_to_wire(IdleTimeout("silent")).SerializeToString()
IDLE = grpc.aio.AioRpcError(
    grpc.StatusCode.ABORTED,
    grpc.aio.Metadata(),
    grpc.aio.Metadata(("grpc-status-details-bin", idle)),
    "silent",
)


class Call:
    """A call whose writes do what they are told, in order: fail, or succeed."""

    def __init__(self, failures: list[Exception | None]) -> None:
        self._failures = failures

    async def write(self, request: Any) -> None:
        if (failure := self._failures.pop(0)) is not None:
            raise failure

    async def read(self) -> Any:
        return target_pb2.VerifyResponse(result=target_pb2.VerifyResult(next_token_id=7))


def stream(failures: list[Exception | None], opened: list[Call]) -> SessionStream:
    def open_call() -> Call:
        opened.append(Call(failures))
        return opened[-1]

    settings = target_pb2.VerifyRequest(vocabulary_fingerprint="mine")
    return SessionStream(open_call, settings, 60.0, "the target")


@pytest.mark.parametrize("refusal", [LOST, IDLE])
async def test_a_session_that_ended_before_it_began_is_opened_again(refusal: Exception) -> None:
    """It was refused for a reason that was lost, or was silent while it had nothing to ask."""
    opened: list[Call] = []
    session = stream([refusal, refusal, None], opened)
    request = target_pb2.VerifyRequest(token_ids=[1])
    assert (await session.exchange(request)).result.next_token_id == 7
    assert len(opened) == 3
    assert request.vocabulary_fingerprint == "mine"  # told again


async def test_later_it_has_ended() -> None:
    session = stream([None, LOST], [])
    await session.exchange(target_pb2.VerifyRequest(token_ids=[1]))
    with pytest.raises(ServiceUnavailable, match="the target: it ended the session"):
        await session.exchange(target_pb2.VerifyRequest(token_ids=[2]))
