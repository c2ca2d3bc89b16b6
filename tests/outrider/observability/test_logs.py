from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from outrider.observability.logs import JsonFormatter, TextFormatter, outgoing_metadata
from outrider.protocol.request_id import request_id


@pytest.fixture
def current() -> Iterator[str]:
    token = request_id.set("r-1")
    yield "r-1"
    request_id.reset(token)


def record(**fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("outrider.x", logging.INFO, "f.py", 1, "took %d\nms", (5,), None)
    made.__dict__.update(fields)
    return made


def test_json_is_an_object_a_line(current: str) -> None:
    line = JsonFormatter().format(record(method="Verify", duration_ms=1.5))
    assert "\n" not in line
    entry = json.loads(line)
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "info",
        "logger": "outrider.x",
        "message": "took 5\nms",
        "request_id": "r-1",
        "method": "Verify",
        "duration_ms": 1.5,
    }


def test_outside_of_a_request_there_is_no_id() -> None:
    assert "request_id" not in json.loads(JsonFormatter().format(record()))
    assert outgoing_metadata() == []


def test_an_exception_stays_in_its_line(current: str) -> None:
    try:
        raise ValueError("odd")
    except ValueError:
        made = record(exc_info=sys.exc_info())
    entry = json.loads(JsonFormatter().format(made))
    assert "ValueError: odd" in entry["exception"]
    assert "exc_info" not in entry


def test_text_ends_with_the_id(current: str) -> None:
    assert TextFormatter().format(record()).endswith("INFO outrider.x: took 5\nms [r-1]")
    assert outgoing_metadata() == [("x-request-id", "r-1")]
