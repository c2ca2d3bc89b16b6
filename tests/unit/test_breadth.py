from __future__ import annotations

import pytest

from draft_service.drafters.breadth import Breadth, StepTime, measure_step_time
from tests.recording_engine import RecordingEngine

# A pass over one branch takes 10, over four 16.
STEP_TIME = StepTime(10.0, 2.0)
CHANCES = [0.3, 0.2, 0.15, 0.1]


def breadth(window_ns: int) -> Breadth:
    found = Breadth(STEP_TIME)
    for _ in range(20):
        found.observe(window_ns, 4, 9, is_done=True)
    return found


@pytest.mark.parametrize(
    ("window_ns", "num_branches"),
    [
        (2, 0),  # hardly a fifth of a pass
        (32, 4),  # two passes over all of them
        (1000, 4),
    ],
)
def test_as_many_branches_as_the_time_is_worth(window_ns: int, num_branches: int) -> None:
    assert breadth(window_ns).choose(CHANCES, 2) == num_branches


def test_a_branch_that_is_never_taken_is_not_worth_its_time() -> None:
    assert breadth(22).choose([0.6, 0.001, 0.001, 0.001], 2) == 1
    assert breadth(22).choose([0.0, 0.6, 0.001, 0.001], 2) == 2


def test_more_time_never_means_fewer_branches_for_one_token() -> None:
    chosen = [breadth(window).choose(CHANCES, 1) for window in range(5, 80, 5)]
    assert chosen == sorted(chosen)
    assert chosen[-1] == 4


def test_nothing_is_ruled_out_before_anything_is_known() -> None:
    assert Breadth(STEP_TIME).choose(CHANCES, 2) == 4


def test_others_take_their_share_of_the_time() -> None:
    """One pass in a long time: the engine had other work."""
    busy = breadth(100)
    for _ in range(20):
        busy.observe(100, 4, 0, is_done=False)
    assert busy.choose(CHANCES, 2) < breadth(100).choose(CHANCES, 2)


def test_what_is_measured_is_passes_over_slots() -> None:
    engine = RecordingEngine()
    measured = measure_step_time(engine, 4)
    assert {len(chunks) for chunks in engine.passes} == {1, 4}
    assert measured.first_ns > 0
    assert measure_step_time(engine, 0).further_ns == 0
