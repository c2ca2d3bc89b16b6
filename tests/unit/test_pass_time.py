from __future__ import annotations

import random

import pytest

from orchestrator.pass_time import PassTime

MS = 1_000_000


def seen(*passes: tuple[int, bool, float], token_ms: float = 0.0) -> PassTime:
    """After passes of so many tokens, beside a draft that works or not, of so many ms."""
    pass_time, chance = PassTime(token_ms * MS), random.Random(0)
    for num_tokens, works, took_ms in passes:
        pass_time.add(num_tokens, works, chance.uniform(0.95, 1.05) * took_ms * MS)
    return pass_time


def test_one_pass_of_the_target_alone_is_remembered_beside_a_draft_that_slows_it_down() -> None:
    """The machine may have become slow meanwhile, but that is not what one expects."""
    pass_time = seen((1, False, 15), *[(2, True, 36)] * 31, token_ms=1)
    assert pass_time.at(1, draft_works=False) == pytest.approx(15 * MS, rel=0.4)
    assert pass_time.at(2, draft_works=True) == pytest.approx(36 * MS, rel=0.05)


@pytest.mark.parametrize("works", [False, True])
def test_what_a_slow_machine_took_is_not_held_against_either_kind(works: bool) -> None:
    """Many of one kind, while the machine is slow; then it is not, and few of the other tell."""
    both = [(1, False, 30), (2, True, 35)] * 20
    kinds = {False: (1, False, 30), True: (2, True, 35)}
    slow = [(*kinds[works][:2], 1.4 * kinds[works][2])] * 40
    pass_time = seen(*both, *slow, *[kinds[not works]] * 6, token_ms=2)
    assert pass_time.at(1, draft_works=False) == pytest.approx(30 * MS, rel=0.15)
    assert pass_time.at(2, draft_works=True) == pytest.approx(35 * MS, rel=0.15)


def test_a_pass_that_was_held_up_changes_little() -> None:
    pass_time = seen(*[(1, False, 30)] * 10)
    before = pass_time.at(1, draft_works=False)
    pass_time.add(1, False, 3000 * MS)
    assert before < pass_time.at(1, draft_works=False) < 1.15 * before


@pytest.mark.parametrize("works", [False, True])
def test_wide_passes_tell_what_a_token_costs_whoever_works(works: bool) -> None:
    pass_time = seen(*[(1, works, 30), (9, works, 110)] * 10, token_ms=1)
    more_ns = pass_time.at(8, works) - pass_time.at(1, works)
    assert more_ns == pytest.approx(70 * MS, rel=0.15)


def test_a_token_that_has_become_dearer_is_noticed_after_any_time() -> None:
    pass_time = seen(*[(1, False, 30), (9, False, 54)] * 2000, token_ms=3)
    for _ in range(60):
        pass_time.add(1, False, 30 * MS)
        pass_time.add(9, False, 110 * MS)
    assert pass_time.at(9, False) - pass_time.at(1, False) == pytest.approx(80 * MS, rel=0.25)


def test_a_wider_pass_never_takes_less() -> None:
    pass_time = seen(*[(1, False, 30), (8, False, 20)] * 10)
    assert pass_time.at(8, draft_works=False) == pass_time.at(1, draft_works=False)


def test_those_who_share_a_pass_learn_from_it_together_as_much_as_one() -> None:
    alone, together = seen((1, False, 30)), seen((1, False, 30))
    for _ in range(8):
        alone.add(1, False, 32 * MS)
        for _ in range(4):
            together.add(1, False, 32 * MS, share=1 / 4)
    assert together.num_passes == alone.num_passes
    assert together.at(1, False) == pytest.approx(alone.at(1, False), rel=0.01)


def test_nothing_is_known_before_the_first() -> None:
    assert PassTime(5.0).at(3, draft_works=True) == 0.0
