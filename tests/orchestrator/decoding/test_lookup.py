"""What is looked up in the text, beside a draft that may say otherwise."""

from __future__ import annotations

import pytest

from orchestrator.decoding.lookup import SURE_MATCH, look_up
from orchestrator.policy.draft_policy import Decision
from orchestrator.step import NO_DRAFT, DraftSource, DraftTokens

DECISION = Decision(lookup_length=4)


def text(match_length: int) -> list[int]:
    """Whose last tokens stood there before, followed by 51, 52, 53, ..."""
    match = list(range(10, 10 + match_length))
    return [1, *match, 51, 52, 53, 54, 55, 2, *match]


def found(match_length: int, num_tokens: int) -> DraftTokens:
    token_ids = tuple(range(51, 51 + num_tokens))
    return DraftTokens(token_ids, DraftSource.LOOKUP, match_length=match_length)


@pytest.mark.parametrize("length", [2, 3, SURE_MATCH - 1])
def test_a_draft_that_says_otherwise_is_likelier_than_a_short_match(length: int) -> None:
    num_tokens = min(4, length)
    assert look_up(text(length), 9, DECISION) == found(length, num_tokens)
    assert look_up(text(length), 9, DECISION, predrafted=[7, 52]) == NO_DRAFT
    confirmed = look_up(text(length), 9, DECISION, predrafted=[51])
    assert confirmed == found(length, num_tokens)


def test_what_the_draft_says_the_same_of_and_more_is_left_to_it() -> None:
    assert look_up(text(2), 9, DECISION, predrafted=[51, 52]).token_ids == (51, 52)
    assert look_up(text(2), 9, DECISION, predrafted=[51, 52, 53]) == NO_DRAFT


@pytest.mark.parametrize("length", [SURE_MATCH, SURE_MATCH + 4])
def test_a_long_match_is_likelier_than_a_draft_that_says_otherwise(length: int) -> None:
    assert look_up(text(length), 9, DECISION, predrafted=[7]) == found(length, 4)


def test_nothing_is_looked_up_beyond_what_there_is_room_for_or_below_what_pays() -> None:
    assert look_up(text(4), 2, DECISION).token_ids == (51, 52)
    assert look_up(text(1), 9, DECISION) == NO_DRAFT
    long_only = Decision(lookup_length=9, shortest_lookup=3)
    assert look_up(text(4), 2, long_only) == NO_DRAFT
    assert look_up(text(4), 3, long_only) == found(4, 3)
