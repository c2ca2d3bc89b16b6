"""Client channels, and the conversion of gRPC errors to exceptions."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from outrider import errors
from outrider.errors import ConfigurationError, OutriderError
from outrider.protocol.address import check_address

Metadata = Mapping[str, str | bytes] | Sequence[tuple[str, str | bytes]]
"""Values by key, or pairs of them; a value is bytes where the key ends with "-bin"."""

Options = Mapping[str, int | str] | Sequence[tuple[str, int | str]]
"""gRPC's channel arguments: values by name, or pairs of them."""

# gRPC ends a call with a larger message without a reason. A prompt of 2**20 tokens is some 5 MB.
MAX_MESSAGE_BYTES = 32 * 2**20

CHANNEL_OPTIONS: Options = [
    # All three are needed to notice a frozen peer: without the last one, gRPC
    # waits a minute for a ping to be answered.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # Find a restarted peer within milliseconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Also how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    # Services are reached directly, whatever proxy the environment has for the web.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]


def open_channel(
    kind: Any,
    address: str,
    credentials: grpc.ChannelCredentials | None = None,
    options: Options = (),
) -> Any:
    """A channel of `kind`, the module grpc or grpc.aio. `options` override CHANNEL_OPTIONS.

    Raises:
        ConfigurationError: the address is not valid.
    """
    check_address(address)
    chosen = [*{**dict(CHANNEL_OPTIONS), **checked_options(options)}.items()]
    if credentials is None:
        return kind.insecure_channel(address, options=chosen)
    return kind.secure_channel(address, credentials, options=chosen)


def checked_metadata(metadata: Metadata) -> list[tuple[str, str | bytes]]:
    """Metadata as pairs. Raises ConfigurationError for keys or values that gRPC rejects."""
    pairs = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    for key, value in pairs:
        if not re.fullmatch(r"[0-9a-z_.-]+", key) or key.startswith("grpc-"):
            raise ConfigurationError(f"{key!r:.60} is not a key of metadata: these are lower case")
        is_binary = key.endswith("-bin")
        if not isinstance(value, bytes if is_binary else str):
            kind = "bytes" if is_binary else "a string"
            raise ConfigurationError(f"the value of the metadata key {key!r:.60} must be {kind}")
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise ConfigurationError(
                f"the value of the metadata key {key!r:.60} must be printable ASCII"
            )
    return pairs


def checked_options(options: Options) -> dict[str, int | str]:
    """Options as a dictionary. Raises ConfigurationError for values that gRPC would ignore."""
    chosen = dict(options)
    for name, value in chosen.items():
        if not isinstance(value, int | str):
            raise ConfigurationError(
                f"the value of the option {name!r:.60} must be an integer or a string"
            )
    return chosen


_DETAILS_KEY = "grpc-status-details-bin"

CLASS_BY_REASON = {kind.reason: kind for kind in reversed([*errors.kinds_of(OutriderError)])}
"""The class for each reason in a service's errors; if several share it, their base class."""

# The classes of codes that gRPC itself sets.
_CLASS_BY_CODE: dict[grpc.StatusCode, type[OutriderError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.UNAVAILABLE: errors.ServiceUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
}

# gRPC's words for a message that exceeds its receiver's limit.
_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")

# gRPC's words for a failed connection.
_NO_CONNECTION = (
    re.compile(
        r"last error: \w+: (?:ipv[46]:)?(\S+): "
        r"(?:Failed to connect to remote host: (?:\S+\(\S+\): )?)?(.+)"
    ),
    re.compile(r"address lookup failed for (\S+): ([^\]]+)"),
)

# gRPC's words for a connection that ended in the middle of a call.
_LOST_CONNECTION = re.compile(r"Stream removed \((?:recvmsg:)?(.+)\)")

# Plain words for what prevents a connection, by gRPC's.
_PREVENTED = {
    "Expected SETTINGS frame": "what answers is not a gRPC server",
    "before receiving SETTINGS": "it accepts connections and does not answer",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "CERTIFICATE_VERIFY_FAILED": "its TLS certificate cannot be verified",
    "Hostname Verification": "its TLS certificate is for another host name",
    "Socket closed": "it closed the connection; if it speaks TLS, the client needs credentials",
}


def from_rpc_error(error: Any, service: str = "") -> OutriderError:
    """The exception for a failed call, by its reason or, without one, by its status code.

    The name of the `service` is added to gRPC's own messages, and to those that say that it
    cannot serve now.
    """
    info, retry_after = _details(error)
    message = _plainly(error) or error.code().name
    known_class = CLASS_BY_REASON.get(info.reason)
    if service and (
        not info.reason or issubclass(known_class or object, errors.ServiceUnavailable)
    ):
        message = f"{service}: {message}"
    if known_class is not None:
        return known_class(message, retry_after=retry_after, **info.metadata)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and (
        found := _TOO_LARGE.search(error.details() or "")
    ):
        return errors.MessageTooLarge(
            f"a message of {found[1]} bytes exceeds the limit of {found[2]}",
            size=found[1],
            limit=found[2],
        )
    if (error_class := _CLASS_BY_CODE.get(error.code())) is not None:
        return error_class(message, retry_after=retry_after)
    unknown = OutriderError(message, retry_after=retry_after)
    unknown.code = errors.StatusCode[error.code().name]
    return unknown


def _plainly(error: Any) -> str | None:
    """gRPC's description of a failed call, in fewer words where it is long."""
    details: str | None = error.details()
    if details == "Method not found!":
        return "another service is at this address"
    if error.code() is grpc.StatusCode.UNAVAILABLE and (
        found := _LOST_CONNECTION.fullmatch(details or "")
    ):
        return f"the connection was lost: {found[1]}"
    for pattern in _NO_CONNECTION:
        if found := pattern.search(details or ""):
            words = (word for sign, word in _PREVENTED.items() if sign in found[2])
            return f"cannot connect to {unquote(found[1])}: {next(words, found[2])}"
    return details


def _details(error: Any) -> tuple[error_details_pb2.ErrorInfo, float | None]:
    """The reason, empty if there is none, and the seconds after which to retry."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    has_retry = False
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            # A proxy between client and service may have written something else.
            with suppress(DecodeError):
                for detail in status_pb2.Status.FromString(value).details:
                    detail.Unpack(info)
                    has_retry |= detail.Unpack(retry)
    return info, retry.retry_delay.ToMilliseconds() / 1e3 if has_retry else None
