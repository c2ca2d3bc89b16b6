"""Log lines with the id of the request that they belong to."""

import json
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import grpc

from outrider.observability import telemetry
from outrider.protocol.interceptors import Around, Context, Method, telling_the_end
from outrider.protocol.request_id import REQUEST_ID_KEY, is_request_id, request_id

# The attributes of every record; others come from `extra`.
_STANDARD = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}

log = logging.getLogger("outrider.serving.calls")


def configure(format: str, level: str) -> None:
    """Sends log lines to standard error: "text", or "json", an object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextFormatter(logging.Formatter):
    """Formats a record as a line, with the request's id in brackets."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return f"{line} [{current}]" if (current := request_id.get()) else line


class JsonFormatter(logging.Formatter):
    """Formats a record as JSON: time (UTC), level, logger, message, ids, and its `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            entry["request_id"] = current
        if trace_id := telemetry.current_trace_id():
            entry["trace_id"] = trace_id
        entry.update((k, v) for k, v in record.__dict__.items() if k not in _STANDARD)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class RequestIds(Around):
    """Gives each call the id that its client sent, or a new one, and logs how it ended.

    The id goes back as trailing metadata. As initial metadata it would end gRPC's retries,
    which stop at the first sign of an answer.
    """

    @contextmanager
    def around(self, method: Method, context: Context) -> Iterator[None]:
        metadata = context.invocation_metadata() or ()
        sent = (value for key, value in metadata if key == REQUEST_ID_KEY and is_request_id(value))
        current = str(next(sent, "")) or secrets.token_hex(8)
        token = request_id.set(current)
        context.set_trailing_metadata(((REQUEST_ID_KEY, current),))
        began = time.perf_counter()

        def tell(code: grpc.StatusCode) -> None:
            seconds = time.perf_counter() - began
            # A session lasts until its client closes it.
            is_closed = method.kind == "bidi_stream" and code is grpc.StatusCode.CANCELLED
            log.log(
                logging.DEBUG if method.is_quiet else logging.INFO,
                "%s %s in %.3f s",
                method.name,
                "closed by its client" if is_closed else code.name,
                seconds,
                extra={
                    "method": method.name,
                    "code": code.name,
                    "duration_ms": round(seconds * 1e3, 3),
                },
            )
            request_id.reset(token)

        with telling_the_end(context, tell):
            yield


def outgoing_metadata() -> list[tuple[str, str]]:
    """Metadata of calls to other services: the request's id, and its trace if there is one."""
    metadata = telemetry.outgoing_context()
    if current := request_id.get():
        metadata.append((REQUEST_ID_KEY, current))
    return metadata
