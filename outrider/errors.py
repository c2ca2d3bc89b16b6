"""The exceptions that users of Outrider can rely on.

Each kind of error has one gRPC status code and one reason. The reason travels
as `google.rpc.ErrorInfo`, so that a client can branch on it and raise the same
class again. Messages are constant per kind as far as possible: load testers
group by text.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Any

DOMAIN = "outrider"


StatusCode = Enum(
    "StatusCode",
    "CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS "
    "PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE "
    "UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED",
)
"""gRPC's status codes after OK, 0, by their numbers on the wire: the engine imports no gRPC."""


class OutriderError(Exception):
    """Base of all errors of Outrider."""

    code = StatusCode.INTERNAL
    reason = "INTERNAL"

    def __init_subclass__(cls, code: StatusCode | None = None, reason: str = "") -> None:
        """A class without a code or a reason inherits those of its base."""
        cls.code, cls.reason = code or cls.code, reason or cls.reason

    def __init__(self, message: str, *, retry_after: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata
        self.retry_after = retry_after
        """Seconds after which to retry (`google.rpc.RetryInfo`), where known."""


def kinds_of(error: type[OutriderError]) -> Iterator[type[OutriderError]]:
    """All subclasses of `error`, each before its own subclasses."""
    for kind in error.__subclasses__():
        yield kind
        yield from kinds_of(kind)


def install_hint(extra: str) -> str:
    """How to install packages that only some need; Outrider is installed from a checkout."""
    return f"from a checkout: pip install -c constraints.txt -e '.[{extra}]'"


class InvalidRequest(OutriderError, code=StatusCode.INVALID_ARGUMENT, reason="INVALID_REQUEST"):
    """A field is missing or out of range."""


class InvalidToken(OutriderError, code=StatusCode.INVALID_ARGUMENT, reason="INVALID_TOKEN"):
    """A token id is outside the model's vocabulary."""


class ContextMismatch(
    OutriderError, code=StatusCode.FAILED_PRECONDITION, reason="CONTEXT_MISMATCH"
):
    """`context_length` exceeds what the session holds."""


class ContextTooLong(OutriderError, code=StatusCode.OUT_OF_RANGE, reason="CONTEXT_TOO_LONG"):
    """The sequence does not fit the context limit."""


class VocabularyMismatch(
    OutriderError, code=StatusCode.FAILED_PRECONDITION, reason="VOCABULARY_MISMATCH"
):
    """Draft and target do not share a vocabulary."""


class HiddenStateMismatch(
    OutriderError, code=StatusCode.FAILED_PRECONDITION, reason="HIDDEN_STATE_MISMATCH"
):
    """The target does not give the hidden states that the draft reads."""


class BrokenChatTemplate(
    OutriderError, code=StatusCode.FAILED_PRECONDITION, reason="BROKEN_CHAT_TEMPLATE"
):
    """The model's chat template cannot be used, whatever the messages are."""


class MessageTooLarge(
    OutriderError, code=StatusCode.RESOURCE_EXHAUSTED, reason="MESSAGE_TOO_LARGE"
):
    """A message is larger than its receiver accepts; a retry will not help."""


class WireVersionMismatch(
    OutriderError, code=StatusCode.FAILED_PRECONDITION, reason="WIRE_VERSION_MISMATCH"
):
    """A draft or target service is of a release that does not fit the orchestrator's."""


class NoFreeSlot(OutriderError, code=StatusCode.RESOURCE_EXHAUSTED, reason="NO_FREE_SLOT"):
    """All slots of the KV cache are taken by other sessions."""


class QueueFull(OutriderError, code=StatusCode.RESOURCE_EXHAUSTED, reason="QUEUE_FULL"):
    """The queue is full, or this request would wait in it for too long."""


class ServiceUnavailable(OutriderError, code=StatusCode.UNAVAILABLE, reason="SERVICE_UNAVAILABLE"):
    """A service cannot be reached, is not ready, or is shutting down."""


class ModelLoading(ServiceUnavailable, reason="MODEL_LOADING"):
    """A service is still loading its model; a retry will help."""


class EngineFailed(ServiceUnavailable):
    """The engine of a service has failed; its process ends."""


class DeadlineExceeded(
    OutriderError, code=StatusCode.DEADLINE_EXCEEDED, reason="DEADLINE_EXCEEDED"
):
    """The caller's deadline passed."""


class DeadlineUnreachable(DeadlineExceeded, reason="DEADLINE_UNREACHABLE"):
    """The caller's deadline would pass; nothing was begun."""


class IdleTimeout(OutriderError, code=StatusCode.ABORTED, reason="IDLE_TIMEOUT"):
    """A session's client was silent for too long, or did not take its answers."""


class Cancelled(OutriderError, code=StatusCode.CANCELLED, reason="CANCELLED"):
    """The caller cancelled."""


class ClientMisuse(OutriderError, code=StatusCode.FAILED_PRECONDITION, reason="CLIENT_MISUSE"):
    """The client library is called where it cannot work: closed, or in another event loop."""


class WrongService(OutriderError, code=StatusCode.UNIMPLEMENTED, reason="WRONG_SERVICE"):
    """The service at this address is not the one that was called."""


class NotANumber(OutriderError, code=StatusCode.DATA_LOSS, reason="NOT_A_NUMBER"):
    """A model computed NaN or infinity: its weights are damaged, or a sum overflowed."""

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message or "the model computes NaN or infinity for this text", **details)


class ModelNotFound(OutriderError, code=StatusCode.NOT_FOUND, reason="MODEL_NOT_FOUND"):
    """No model under this id or folder, or its files cannot be read."""


class UnsupportedModel(OutriderError, code=StatusCode.UNIMPLEMENTED, reason="UNSUPPORTED_MODEL"):
    """The engine does not reproduce this model family's logits."""


class ConfigurationError(OutriderError, code=StatusCode.INVALID_ARGUMENT, reason="CONFIGURATION"):
    """A flag, an environment variable or a file has an impossible value."""
