from __future__ import annotations

from draft_service.drafters.outcomes import likeliest_corrections
from outrider.sampling import Choice

RANKS = [
    [Choice(5, 0.9), Choice(6, 0.08), Choice(7, 0.01)],
    [Choice(8, 0.5), Choice(9, 0.4)],
    [Choice(3, 0.6), Choice(4, 0.2)],
]


def test_the_likeliest_corrections_come_first() -> None:
    # 0.9 * 0.4; 0.9 * 0.5 * 0.2; 0.08; 0.01
    assert likeliest_corrections([5, 8, 3], RANKS, 9) == [[5, 9], [5, 8, 4], [6], [7]]
    assert likeliest_corrections([5, 8, 3], RANKS, 2) == [[5, 9], [5, 8, 4]]
    assert likeliest_corrections([5, 8, 3], RANKS, 0) == []


def test_where_the_drafts_choices_are_unknown_nothing_can_be_said() -> None:
    assert likeliest_corrections([5, 8, 3], [[], *RANKS[1:]], 9) == []
    assert likeliest_corrections([5, 8, 3], [RANKS[0], [], RANKS[2]], 9) == [[6], [7]]
    assert likeliest_corrections([], [], 3) == []


def test_a_draft_token_that_was_no_choice_ends_what_is_likely() -> None:
    corrections = likeliest_corrections([99, 8], [RANKS[0], RANKS[1]], 3)
    assert corrections == [[5], [6], [7]]
