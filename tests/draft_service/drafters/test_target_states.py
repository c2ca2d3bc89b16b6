"""Which hidden states of the target a session has."""

import pytest
import torch

from draft_service.drafters.target_states import TargetStates
from outrider.errors import InvalidRequest
from outrider.protocol.hidden_states import HiddenStates


def states(first: int, end: int, version: int = 0) -> HiddenStates:
    """Rows of two numbers: the token's index and the version."""
    rows = torch.tensor([[index, version] for index in range(first, end)], dtype=torch.bfloat16)
    return HiddenStates(first, end - first, rows.view(torch.uint8).numpy().tobytes())


def held(states: TargetStates, begin: int = 0) -> list[tuple[int, int]]:
    return [tuple(row) for row in states.rows(begin, states.end).int().tolist()]


def test_what_comes_next_is_added_and_what_comes_again_is_not() -> None:
    session = TargetStates(2)
    assert not session.take(0, states(0, 3))
    assert not session.take(3, states(3, 4))
    assert not session.take(4, states(2, 6, version=1))
    assert held(session) == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1)]
    assert (session.origin, session.end) == (0, 6)


def test_those_of_other_tokens_are_replaced() -> None:
    session = TargetStates(2)
    session.take(0, states(0, 6))
    assert not session.take(4, None)
    assert session.end == 4
    assert not session.take(3, states(3, 5, version=1))
    assert held(session, 2) == [(2, 0), (3, 1), (4, 1)]


def test_behind_a_gap_they_begin_anew() -> None:
    session = TargetStates(2)
    session.take(0, states(0, 3))
    assert session.take(8, states(6, 8))
    assert (session.origin, session.end) == (6, 8)
    assert held(session) == [(6, 0), (7, 0)]


def test_dropped_ones_are_missed_only_if_they_are_needed() -> None:
    session = TargetStates(2)
    session.take(0, states(0, 8))
    session.drop_before(5)
    assert not session.take(8, states(8, 9))
    assert held(session, 6) == [(6, 0), (7, 0), (8, 0)]
    assert session.origin == 0
    assert session.take(4, states(4, 6, version=1))
    assert (session.origin, held(session)) == (4, [(4, 1), (5, 1)])


def test_what_is_no_number_does_not_reach_the_draft() -> None:
    rows = torch.tensor([[torch.nan, 3e38], [torch.inf, -3e38]], dtype=torch.bfloat16)
    session = TargetStates(2)
    session.take(0, HiddenStates(0, 2, rows.view(torch.uint8).numpy().tobytes()))
    assert session.rows(0, 2).tolist() == [[0.0, 1e6], [0.0, -1e6]]


def test_none_at_all() -> None:
    session = TargetStates(2)
    assert not session.take(0, None)
    assert session.end == session.origin == 0


@pytest.mark.parametrize("num_bytes", [0, 20, 22])
def test_rows_of_another_size_are_refused(num_bytes: int) -> None:
    with pytest.raises(InvalidRequest, match=f"have {num_bytes} bytes instead of 2 numbers"):
        TargetStates(2).take(0, HiddenStates(0, 3, bytes(num_bytes)))
