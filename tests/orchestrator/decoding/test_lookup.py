"""What the orchestrator looks up in the text, beside a draft that may say otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from orchestrator.decoding.lookup import NOTHING, SURE_MATCH, LookedUp, look_up
from orchestrator.policy.adaptive_length import AdaptiveLength
from orchestrator.policy.draft_length import FixedLength
from orchestrator.policy.experience import Experience, StepCost
from tests.orchestrator.decoding.test_decoder import as_much_as_wanted, plain_decoding, run
from tests.orchestrator.decoding.test_decoder import text as text_of
from tests.support.fakes import FakeDrafter

LENGTHS = FixedLength(4, Experience())


def text(match_length: int) -> list[int]:
    """Whose last tokens stood there before, followed by 51, 52, 53, ..."""
    match = list(range(10, 10 + match_length))
    return [1, *match, 51, 52, 53, 54, 55, 2, *match]


@pytest.mark.parametrize("match_length", [2, 3, SURE_MATCH - 1])
def test_a_draft_that_says_otherwise_is_likelier_than_a_short_match(match_length: int) -> None:
    tokens = text(match_length)
    found = tuple(range(51, 51 + min(4, match_length)))
    assert look_up(tokens, 9, LENGTHS) == LookedUp(found, match_length)
    assert look_up(tokens, 9, LENGTHS, predrafted=[7, 52]) == NOTHING
    assert look_up(tokens, 9, LENGTHS, predrafted=[51]) == LookedUp(found, match_length, True)


def test_what_the_draft_says_the_same_of_and_more_is_left_to_it() -> None:
    assert look_up(text(2), 9, LENGTHS, predrafted=[51, 52]).token_ids == (51, 52)
    assert look_up(text(2), 9, LENGTHS, predrafted=[51, 52, 53]) == NOTHING


@pytest.mark.parametrize("match_length", [SURE_MATCH, SURE_MATCH + 4])
def test_a_long_match_is_likelier_than_a_draft_that_says_otherwise(match_length: int) -> None:
    found = (51, 52, 53, 54)
    assert look_up(text(match_length), 9, LENGTHS, predrafted=[7]) == LookedUp(found, match_length)


def test_nothing_is_looked_up_beyond_what_there_is_room_for_or_below_what_pays() -> None:
    assert look_up(text(4), 2, LENGTHS).token_ids == (51, 52)
    assert look_up(text(4), 2, LENGTHS, least=3) == NOTHING
    assert look_up(text(1), 9, LENGTHS) == NOTHING


def test_what_the_draft_confirms_is_judged_by_itself() -> None:
    policy = AdaptiveLength(Experience(token_ns=4e6))
    policy.observe(StepCost(0, 0, 0, 30_000_000, draft_rests=True))
    assert policy.lookup_length(16, True) > policy.lookup_length(16, False) > 0
    for _ in range(30):
        policy.observe(StepCost(0, 0, 0, 30_000_000, draft_rests=True))
        policy.observe(StepCost(2, 0, 0, 38_000_000, match_length=4))
        policy.observe(StepCost(4, 4, 0, 46_000_000, match_length=4, is_confirmed=True))
    assert policy.lookup_length(16, False) == 0
    assert policy.lookup_length(16, True) > 8


async def test_a_predrafted_draft_goes_before_a_short_match_that_says_otherwise() -> None:
    def two_of_three_come_again(tokens: Sequence[int]) -> int:
        return (5, 6, 100 + len(tokens))[len(tokens) % 3]

    wrong = {}
    for num_predrafts in (0, 2):
        drafter = FakeDrafter(two_of_three_come_again, num_predrafted=as_much_as_wanted)
        steps = await run(
            drafter, 1, 60, num_predrafts, looks_up=True, target=two_of_three_come_again
        )
        assert text_of(steps) == plain_decoding([1, 2, 3], 60, two_of_three_come_again)
        wrong[num_predrafts] = sum(s.num_accepted_tokens < s.num_draft_tokens for s in steps)
    assert wrong[0] > 5  # nothing is predrafted, so what follows 5 and 6 is taken for what it was
    assert wrong[2] == 0
