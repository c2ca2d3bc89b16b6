"""What a failed call becomes at the client."""

from __future__ import annotations

import grpc
import pytest

from outrider import errors
from outrider.errors import OutriderError
from outrider.protocol.channel import CLASS_BY_REASON, from_rpc_error
from tests.support.scripted_service import details


def rpc_error(code: grpc.StatusCode, *trailing: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), "oh")


def test_without_a_reason_the_code_decides() -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE))
    assert type(error) is errors.ServiceUnavailable


@pytest.mark.parametrize("kind", [errors.ServiceUnavailable, errors.ModelLoading])
def test_of_what_cannot_serve_the_name_is_told(kind: type[OutriderError]) -> None:
    status = ("grpc-status-details-bin", details(kind("oh")))
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, status), "the target")
    assert type(error) is kind
    assert error.message == "the target: oh"
    refusal = ("grpc-status-details-bin", details(errors.InvalidRequest("oh")))
    error = from_rpc_error(rpc_error(grpc.StatusCode.INVALID_ARGUMENT, refusal), "the target")
    assert error.message == "oh"


def test_every_reason_has_a_class_and_the_first_one_keeps_it() -> None:
    assert CLASS_BY_REASON["BROKEN_CHAT_TEMPLATE"] is errors.BrokenChatTemplate
    assert CLASS_BY_REASON["SERVICE_UNAVAILABLE"] is errors.ServiceUnavailable  # EngineFailed's too
    assert OutriderError not in CLASS_BY_REASON.values()


def test_a_code_that_can_mean_several_things_keeps_its_code_alone() -> None:
    error = from_rpc_error(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED))
    assert type(error) is OutriderError
    assert error.code is errors.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_that_its_receiver_does_not_take_has_a_reason() -> None:
    details = "CLIENT: Received message larger than max (43 vs. 42)"
    nothing = grpc.aio.Metadata()
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    error = from_rpc_error(grpc.aio.AioRpcError(code, nothing, nothing, details))
    assert type(error) is errors.MessageTooLarge
    assert error.message == "a message of 43 bytes exceeds the limit of 42"
    assert error.metadata == {"size": "43", "limit": "42"}


def test_undecodable_details_fall_back_to_the_code() -> None:
    garbage = ("grpc-status-details-bin", b"\xff\xff\xff")
    error = from_rpc_error(rpc_error(grpc.StatusCode.UNAVAILABLE, garbage))
    assert type(error) is errors.ServiceUnavailable


@pytest.mark.parametrize(
    ("details", "message"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.9:50051: "
            "Failed to connect to remote host: Connection refused",
            "cannot connect to 10.0.0.9:50051: Connection refused",
        ),
        (
            "errors resolving far:1: [field:hostname lookup error:address lookup failed for far:1: "
            "Domain name not found]",
            "cannot connect to far:1: Domain name not found",
        ),
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:1: "
            "Failed to connect to remote host: getsockopt(SO_ERROR): Network is unreachable",
            "cannot connect to [::1]:1: Network is unreachable",
        ),
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.9:1: "
            "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:100000f7:SSL "
            "routines:OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid certificate",
            "cannot connect to 10.0.0.9:1: it does not speak TLS",
        ),
        (
            "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.9:80: "
            "Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame, got frame type 79)",
            "cannot connect to 10.0.0.9:80: what answers is not a gRPC server",
        ),
        ("Socket closed", "Socket closed"),
        ("Stream removed (Socket closed)", "the connection was lost: Socket closed"),
        (
            "Stream removed (recvmsg:Connection reset by peer)",
            "the connection was lost: Connection reset by peer",
        ),
    ],
)
def test_that_nobody_is_there_is_said_plainly(details: str, message: str) -> None:
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing, details)
    assert from_rpc_error(error).message == message
