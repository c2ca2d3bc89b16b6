from __future__ import annotations

import random

import pytest

from orchestrator.policy.pass_time import Beside, PassTime

MS = 1_000_000


def seen(*passes: tuple[int, Beside, float], token_ms: float = 0.0) -> PassTime:
    """After passes of so many tokens, beside a draft that works or not, of so many ms."""
    pass_time, chance = PassTime(token_ms * MS), random.Random(0)
    for num_tokens, beside, took_ms in passes:
        pass_time.add(num_tokens, beside, chance.uniform(0.95, 1.05) * took_ms * MS)
    return pass_time


def test_one_pass_of_the_target_alone_is_remembered_beside_a_draft_that_slows_it_down() -> None:
    """The machine may have become slow meanwhile, but that is not what one expects."""
    pass_time = seen((1, Beside.REST, 15), *[(2, Beside.WORK, 36)] * 31, token_ms=1)
    assert pass_time.at(1, Beside.REST) == pytest.approx(15 * MS, rel=0.4)
    assert pass_time.at(2, Beside.WORK) == pytest.approx(36 * MS, rel=0.05)


REST, WORK = (1, Beside.REST, 30.0), (2, Beside.WORK, 35.0)


@pytest.mark.parametrize(("many", "few"), [(REST, WORK), (WORK, REST)])
def test_what_a_slow_machine_took_is_not_held_against_either_kind(
    many: tuple[int, Beside, float], few: tuple[int, Beside, float]
) -> None:
    """Many of one kind, while the machine is slow; then it is not, and few of the other tell."""
    slow = (*many[:2], 1.4 * many[2])
    pass_time = seen(*[REST, WORK] * 20, *[slow] * 40, *[few] * 6, token_ms=2)
    assert pass_time.at(1, Beside.REST) == pytest.approx(30 * MS, rel=0.15)
    assert pass_time.at(2, Beside.WORK) == pytest.approx(35 * MS, rel=0.15)


def test_what_a_draft_costs_after_a_hit_is_not_what_it_costs_after_a_miss() -> None:
    """On shared cores a draft that does not begin costs nothing, and one that does much."""
    steps = [(1, Beside.WORK, 29), (2, Beside.WORK_AFTER_HIT, 100), (1, Beside.REST, 28)]
    pass_time = seen(*steps * 10, token_ms=4)
    assert pass_time.at(1, Beside.WORK) == pytest.approx(29 * MS, rel=0.1)
    assert pass_time.at(2, Beside.WORK_AFTER_HIT) == pytest.approx(100 * MS, rel=0.1)
    assert pass_time.at(3, Beside.REST) == pytest.approx(36 * MS, rel=0.2)


def test_a_pass_that_was_held_up_changes_little() -> None:
    pass_time = seen(*[(1, Beside.REST, 30)] * 10)
    before = pass_time.at(1, Beside.REST)
    pass_time.add(1, Beside.REST, 3000 * MS)
    assert before < pass_time.at(1, Beside.REST) < 1.15 * before


@pytest.mark.parametrize("beside", [Beside.REST, Beside.WORK])
def test_wide_passes_tell_what_a_token_costs_whoever_works(beside: Beside) -> None:
    pass_time = seen(*[(1, beside, 30), (9, beside, 110)] * 10, token_ms=1)
    more_ns = pass_time.at(8, beside) - pass_time.at(1, beside)
    assert more_ns == pytest.approx(70 * MS, rel=0.15)


def test_a_token_that_has_become_dearer_is_noticed_after_any_time() -> None:
    pass_time = seen(*[(1, Beside.REST, 30), (9, Beside.REST, 54)] * 2000, token_ms=3)
    for _ in range(60):
        pass_time.add(1, Beside.REST, 30 * MS)
        pass_time.add(9, Beside.REST, 110 * MS)
    assert pass_time.at(9, Beside.REST) - pass_time.at(1, Beside.REST) == pytest.approx(
        80 * MS, rel=0.25
    )


def test_a_wider_pass_never_takes_less() -> None:
    pass_time = seen(*[(1, Beside.REST, 30), (8, Beside.REST, 20)] * 10)
    assert pass_time.at(8, Beside.REST) == pass_time.at(1, Beside.REST)


def test_those_who_share_a_pass_learn_from_it_together_as_much_as_one() -> None:
    alone, together = seen((1, Beside.REST, 30)), seen((1, Beside.REST, 30))
    for _ in range(8):
        alone.add(1, Beside.REST, 32 * MS)
        for _ in range(4):
            together.add(1, Beside.REST, 32 * MS, share=1 / 4)
    assert together.num_passes == alone.num_passes
    assert together.at(1, Beside.REST) == pytest.approx(alone.at(1, Beside.REST), rel=0.01)


def test_nothing_is_known_before_the_first() -> None:
    assert PassTime(5.0).at(3, Beside.WORK) == 0.0
