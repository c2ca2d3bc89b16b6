"""How calls end, as metrics and spans tell it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from outrider.protocol.interceptors import call_code

ABORTED = grpc.aio.AbortError()
CANCELLED = asyncio.CancelledError()


@pytest.mark.parametrize(
    ("error", "code", "remaining", "expected"),
    [
        (None, 0, 0.0, grpc.StatusCode.OK),  # in time after all
        (ABORTED, 3, None, grpc.StatusCode.INVALID_ARGUMENT),
        (ABORTED, grpc.StatusCode.ABORTED, 0.0, grpc.StatusCode.ABORTED),
        (CANCELLED, 0, 0.0, grpc.StatusCode.DEADLINE_EXCEEDED),
        (CANCELLED, 0, -0.1, grpc.StatusCode.DEADLINE_EXCEEDED),
        (CANCELLED, 0, 5.0, grpc.StatusCode.CANCELLED),
        (CANCELLED, 0, None, grpc.StatusCode.CANCELLED),
    ],
)
def test_the_code_that_a_call_ends_with(
    error: BaseException | None, code: Any, remaining: float | None, expected: grpc.StatusCode
) -> None:
    class Context:
        def code(self) -> Any:
            return code

        def time_remaining(self) -> float | None:
            return remaining

    context: Any = Context()
    assert call_code(context, error) is expected
