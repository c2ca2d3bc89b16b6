from __future__ import annotations

import pytest

from draft_service.drafters.outcomes import acceptance_chance, likeliest_corrections
from outrider.sampling.sampler import Choice

RANKS = [
    [Choice(5, 0.9), Choice(6, 0.08), Choice(7, 0.01)],
    [Choice(8, 0.5), Choice(9, 0.4)],
    [Choice(3, 0.6), Choice(4, 0.2)],
]


def likeliest(draft: list[int], ranks: list[list[Choice]], count: int) -> list[list[int]]:
    return [correction.token_ids for correction in likeliest_corrections(draft, ranks, count)]


def test_the_likeliest_corrections_come_first() -> None:
    # 0.9 * 0.4; 0.9 * 0.5 * 0.2; 0.08; 0.01
    assert likeliest([5, 8, 3], RANKS, 9) == [[5, 9], [5, 8, 4], [6], [7]]
    assert likeliest([5, 8, 3], RANKS, 2) == [[5, 9], [5, 8, 4]]
    assert likeliest([5, 8, 3], RANKS, 0) == []


def test_where_the_drafts_choices_are_unknown_nothing_can_be_said() -> None:
    assert likeliest([5, 8, 3], [[], *RANKS[1:]], 9) == []
    assert likeliest([5, 8, 3], [RANKS[0], [], RANKS[2]], 9) == [[6], [7]]
    assert likeliest([], [], 3) == []


def test_a_draft_token_that_was_no_choice_ends_what_is_likely() -> None:
    corrections = likeliest([99, 8], [RANKS[0], RANKS[1]], 3)
    assert corrections == [[5], [6], [7]]


def test_chances_are_the_drafts_own() -> None:
    assert acceptance_chance([5, 8, 3], RANKS) == pytest.approx(0.9 * 0.5 * 0.6)
    assert acceptance_chance([5, 99], RANKS[:2]) == 0
    assert acceptance_chance([], []) == 1
    # Tokens that the draft did not choose: somewhere between.
    assert 0 < acceptance_chance([5, 8], [RANKS[0], []]) < 0.9
    chances = [correction.chance for correction in likeliest_corrections([5, 8, 3], RANKS, 3)]
    assert chances == pytest.approx([0.9 * 0.4, 0.9 * 0.5 * 0.2, 0.08])
