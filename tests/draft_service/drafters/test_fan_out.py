from __future__ import annotations

import pytest

from draft_service.drafters.fan_out import Depth, FanOut, Plan, StepTime, measure_step_time
from tests.support.recording_engine import RecordingEngine

# A pass over one predraft takes 10, over four 16.
STEP_TIME = StepTime(10.0, 2.0)
CHANCES = [0.2, 0.15, 0.1]
ONE, TWO = Depth(1), Depth(2)


def fan_out(window_ns: int) -> FanOut:
    """At the beginning of a verification of two draft tokens, which leave so much time."""
    found = FanOut(STEP_TIME)
    for _ in range(20):
        found.observe(2, int(window_ns / 0.9 + 1), was_served=True)
    found.plan(2, 0.5, CHANCES, ONE)
    return found


def test_where_no_pass_ends_in_time_nothing_is_predrafted() -> None:
    assert fan_out(2).plan(2, 0.5, CHANCES, TWO) == Plan(accepted=False, num_corrections=0)


def test_where_there_is_time_for_one_pass_corrections_are_drafted_after_at_once() -> None:
    """The guess behind the draft would take the only pass."""
    assert fan_out(17).plan(2, 0.5, CHANCES, ONE) == Plan(True, 3)


def test_where_there_is_time_for_two_passes_the_guess_comes_first() -> None:
    """Then all predrafts have a token after 10 + 16, where all at once would take 16 + 16."""
    assert fan_out(27).plan(2, 0.5, CHANCES, ONE) == Plan(True, 0)
    assert fan_out(27).further(0.3, CHANCES, ONE, spent_ns=10) == 3


def test_a_branch_that_is_never_taken_is_not_worth_its_time() -> None:
    assert fan_out(22).further(0.6, [0.001, 0.001, 0.001], ONE, spent_ns=10) == 0
    assert fan_out(17).plan(2, 0.0, [0.6, 0.001, 0.001], ONE).num_corrections == 1


def test_more_time_never_means_fewer_predrafts_for_one_token() -> None:
    chosen = [fan_out(window).further(0.3, CHANCES, ONE, 10) for window in range(5, 80, 5)]
    assert chosen == sorted(chosen)
    assert chosen[-1] == 3


def test_a_pass_that_would_end_after_the_result_is_not_begun() -> None:
    assert fan_out(27).has_time(1, spent_ns=10)
    assert not fan_out(27).has_time(4, spent_ns=20)
    assert not fan_out(27).has_time(1, spent_ns=20)
    slow = fan_out(27)
    for _ in range(10):
        slow.note_pass(1, took_ns=20)
    assert not slow.has_time(1, spent_ns=10)


def test_nothing_is_ruled_out_before_anything_is_known() -> None:
    assert FanOut(STEP_TIME).plan(2, 0.5, CHANCES, TWO) == Plan(True, 3)
    assert FanOut(STEP_TIME).further(0.5, CHANCES, TWO, 10) == 3
    assert FanOut(STEP_TIME).has_time(4, 10**9)
    unknown = FanOut(StepTime())
    unknown.observe(2, 10, was_served=True)
    assert unknown.plan(2, 0.5, CHANCES, TWO) == Plan(True, 3)
    assert unknown.has_time(4, 10**9)


def test_others_take_their_share_of_the_time() -> None:
    """Nothing was done in a long time: the engine had other work."""
    busy = fan_out(100)
    for _ in range(20):
        busy.observe(2, 100, was_served=False)
    busy.plan(2, 0.5, CHANCES, ONE)
    assert busy.further(0.3, CHANCES, ONE, spent_ns=10) == 0
    assert fan_out(100).further(0.3, CHANCES, ONE, spent_ns=10) == 3


def test_what_is_measured_is_passes_over_slots() -> None:
    engine = RecordingEngine()
    measured = measure_step_time(engine, 4)
    assert {len(chunks) for chunks in engine.passes} == {1, 4}
    assert measured.first_ns > 0
    assert measure_step_time(engine, 0).further_ns == 0


@pytest.mark.parametrize("accepted", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("window_ns", [0, 5, 12, 24, 60, 1000])
def test_without_corrections_only_the_guess_is_left(accepted: float, window_ns: int) -> None:
    assert fan_out(window_ns).plan(2, accepted, [], TWO).num_corrections == 0


def test_passes_that_take_longer_than_when_it_was_measured_count_as_they_are() -> None:
    """The target may share the memory."""
    slow = fan_out(27)
    assert slow.further(0.3, CHANCES, ONE, spent_ns=10) == 3
    for _ in range(10):
        slow.note_pass(1, took_ns=20)
    assert slow.further(0.3, CHANCES, ONE, spent_ns=20) == 0
    for _ in range(20):
        slow.note_pass(1, took_ns=10)
    assert slow.further(0.3, CHANCES, ONE, spent_ns=10) == 3


def test_the_more_is_accepted_the_less_corrections_are_worth() -> None:
    """There is time for five passes over one predraft behind the guess, or three over four."""
    window = fan_out(60)
    assert window.further(0.3, CHANCES, Depth(16, 0.3), spent_ns=10) == 3
    assert window.further(0.9, [0.05, 0.02, 0.01], Depth(16, 0.95), spent_ns=10) == 0


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.95, 1.0])
def test_deeper_is_worth_more_but_never_beyond_what_is_wanted(rate: float) -> None:
    worth = [Depth(4, rate).worth(passes / 2) for passes in range(12)]
    assert worth == sorted(worth)
    assert worth[0] == 0.0
    assert worth[2] == pytest.approx(rate)
    assert Depth(4, rate / 1000).worth(1) > 0.2  # else nobody would find out that it is better
    assert worth[8] == worth[-1] == pytest.approx(rate + rate**2 + rate**3 + rate**4)


def test_long_verifications_leave_more_time_than_short_ones() -> None:
    learned = FanOut(STEP_TIME)
    for _ in range(10):
        learned.observe(0, 20, was_served=True)
        learned.observe(4, 100, was_served=True)

    def has_time(num_draft_tokens: int) -> bool:
        learned.plan(num_draft_tokens, 0.5, CHANCES, ONE)
        return learned.has_time(4, spent_ns=20)

    assert [has_time(k) for k in (0, 4)] == [False, True]
    assert [has_time(k) for k in (1, 5)] == [
        False,
        True,
    ]  # as with the nearest number that is known
