"""The exceptions that users of Outrider can rely on.

Each kind of error has one gRPC status code and one reason. The reason travels
as `google.rpc.ErrorInfo`, so that a client can branch on it and raise the same
class again. Messages are constant per kind as far as possible: load testers
group by text.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

DOMAIN = "outrider"


class StatusCode(Enum):
    """gRPC's status codes but OK, by their numbers on the wire: the engine imports no gRPC."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class OutriderError(Exception):
    """Base of all errors of Outrider."""

    code: StatusCode = StatusCode.INTERNAL
    reason: str = "INTERNAL"

    def __init__(self, message: str, *, retry_after: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata
        self.retry_after = retry_after
        """Seconds after which a new try makes sense (`google.rpc.RetryInfo`), where known."""


def kinds_of(error: type[OutriderError]) -> Iterator[type[OutriderError]]:
    """All classes below `error`, each before those below it."""
    for kind in error.__subclasses__():
        yield kind
        yield from kinds_of(kind)


def install_hint(extra: str) -> str:
    """How to install packages that only some need; Outrider is installed from a checkout."""
    return f"from a checkout: pip install -c constraints.txt -e '.[{extra}]'"


class InvalidRequest(OutriderError):
    """A field is missing or out of range."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class InvalidToken(OutriderError):
    """A token id is outside the model's vocabulary."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "INVALID_TOKEN"


class ContextMismatch(OutriderError):
    """`context_length` exceeds what the session holds."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "CONTEXT_MISMATCH"


class ContextTooLong(OutriderError):
    """The sequence does not fit the context limit."""

    code = StatusCode.OUT_OF_RANGE
    reason = "CONTEXT_TOO_LONG"


class VocabularyMismatch(OutriderError):
    """Draft and target do not share a vocabulary."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "VOCABULARY_MISMATCH"


class BrokenChatTemplate(OutriderError):
    """The model's chat template cannot be used, whatever the messages are."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "BROKEN_CHAT_TEMPLATE"


class MessageTooLarge(OutriderError):
    """A message is larger than its receiver takes; no retry will help."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "MESSAGE_TOO_LARGE"


class WireVersionMismatch(OutriderError):
    """A draft or target service is of a release that the orchestrator does not fit."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "WIRE_VERSION_MISMATCH"


class NoFreeSlot(OutriderError):
    """All slots of the KV cache are taken by other sessions."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "NO_FREE_SLOT"


class QueueFull(OutriderError):
    """As many requests wait as may wait, or this one would wait longer than it may."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"


class ServiceUnavailable(OutriderError):
    """A service cannot be reached, is not ready, or is shutting down."""

    code = StatusCode.UNAVAILABLE
    reason = "SERVICE_UNAVAILABLE"


class EngineFailed(ServiceUnavailable):
    """The engine of a service runs no more passes; its process ends."""


class DeadlineExceeded(OutriderError):
    """The caller's deadline passed."""

    code = StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class DeadlineUnreachable(DeadlineExceeded):
    """The caller's deadline would pass; nothing was begun."""

    reason = "DEADLINE_UNREACHABLE"


class IdleTimeout(OutriderError):
    """A session's client was silent for too long, or did not take its answers."""

    code = StatusCode.ABORTED
    reason = "IDLE_TIMEOUT"


class Cancelled(OutriderError):
    """The caller cancelled."""

    code = StatusCode.CANCELLED
    reason = "CANCELLED"


class ClientMisuse(OutriderError):
    """The client library is called where it cannot work: closed, or in another event loop."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "CLIENT_MISUSE"


class WrongService(OutriderError):
    """Another service than the one that was called is at this address."""

    code = StatusCode.UNIMPLEMENTED
    reason = "WRONG_SERVICE"


class NotANumber(OutriderError):
    """What a model computed is NaN or infinite: its weights are damaged, or a sum overflowed."""

    code = StatusCode.DATA_LOSS
    reason = "NOT_A_NUMBER"

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message or "the model computes NaN or infinity for this text", **details)


class ModelNotFound(OutriderError):
    """No model under this id or folder, or its files cannot be read."""

    code = StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class UnsupportedModel(OutriderError):
    """The engine does not reproduce this model family's logits."""

    code = StatusCode.UNIMPLEMENTED
    reason = "UNSUPPORTED_MODEL"


class ConfigurationError(OutriderError):
    """A flag, an environment variable or a file says something impossible."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "CONFIGURATION"
