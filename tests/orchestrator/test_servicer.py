"""How a failed call is explained to its caller."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from orchestrator.servicer import GenerationServicer, _explained
from outrider.errors import (
    Cancelled,
    ContextTooLong,
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidRequest,
    ModelLoading,
    OutriderError,
    QueueFull,
    ServiceUnavailable,
)


def raised(error: OutriderError, seconds_left: float | None) -> OutriderError:
    """What becomes of an error."""
    context: Any = Mock(time_remaining=lambda: seconds_left)
    link: Any = Mock(explain=lambda error: error)
    with pytest.raises(OutriderError) as caught, _explained(context, link):
        raise error
    return caught.value


@pytest.mark.parametrize("kind", [InvalidRequest, ContextTooLong, QueueFull, DeadlineUnreachable])
@pytest.mark.parametrize("seconds_left", [None, 0.01, 9.0])
def test_a_refusal_keeps_its_reason(kind: type[OutriderError], seconds_left: float | None) -> None:
    error = kind("refused")
    assert raised(error, seconds_left) is error


@pytest.mark.parametrize("kind", [ServiceUnavailable, Cancelled, OutriderError])
def test_what_fails_at_the_deadline_fails_because_of_it(kind: type[OutriderError]) -> None:
    assert type(raised(kind("whatever gRPC says"), 0.01)) is DeadlineExceeded
    error = kind("something else")
    assert raised(error, 9.0) is error
    assert raised(error, None) is error


def test_until_there_is_a_pair_requests_fail_by_what_is_missing() -> None:
    servicer = GenerationServicer()
    servicer.wait(ModelLoading("the target at a:1: still"))
    for _ in range(2):
        with pytest.raises(ModelLoading, match=r"^the target at a:1: still$") as caught:
            _ = servicer.pair
    assert len(caught.traceback) == 2  # this frame and the property's, however often
