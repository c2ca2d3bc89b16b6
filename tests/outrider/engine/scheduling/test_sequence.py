from __future__ import annotations

import pytest

from outrider.engine.scheduling.sequence import TokenSequence
from outrider.errors import (
    ContextMismatch,
    ContextTooLong,
    InvalidRequest,
    InvalidToken,
    OutriderError,
)


def held(*token_ids: int) -> TokenSequence:
    sequence = TokenSequence(vocab_size=10, max_length=8)
    sequence.update(0, token_ids, room=0)
    return sequence


def test_keep_and_append() -> None:
    sequence = held(1, 2, 3, 4)
    sequence.update(2, [9], room=0)
    assert sequence.token_ids == [1, 2, 9]
    sequence.update(0, [5], room=0)
    assert sequence.token_ids == [5]


@pytest.mark.parametrize(
    ("context_length", "token_ids", "room", "error"),
    [
        (5, [1], 0, ContextMismatch),
        (0, [], 0, InvalidRequest),
        (4, [10], 0, InvalidToken),
        (4, [1, 1], 3, ContextTooLong),
    ],
)
def test_a_refused_update_changes_nothing(
    context_length: int, token_ids: list[int], room: int, error: type[OutriderError]
) -> None:
    sequence = held(1, 2, 3, 4)
    with pytest.raises(error):
        sequence.update(context_length, token_ids, room)
    assert sequence.token_ids == [1, 2, 3, 4]


def test_a_full_sequence_fits() -> None:
    held(1, 2, 3, 4).update(4, [1, 1], room=2)
