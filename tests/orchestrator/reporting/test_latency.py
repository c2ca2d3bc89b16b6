from __future__ import annotations

import itertools

import pytest

from orchestrator.reporting import latency
from orchestrator.reporting.latency import CriticalPath
from orchestrator.step import StepRecord, Wait
from outrider.protocol.messages import Timings
from outrider.protocol.stages import Stage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves on by 100 ns at each look."""
    ticks = itertools.count(0, 100)
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: next(ticks))


def step(*waits: Wait, ended_ns: int) -> StepRecord:
    return StepRecord((1,), waits=waits, ended_ns=ended_ns)


@pytest.mark.usefixtures("clock")
def test_every_interval_is_booked_once() -> None:
    path = CriticalPath()
    path.spend(Stage.TOKENIZE)
    timings = Timings(queue_ns=10, forward_ns=40, sample_ns=5, total_ns=70)
    waits = Wait(Stage.DRAFT_COMPUTE, 110, 130), Wait(Stage.VERIFY_COMPUTE, 140, 240, timings)
    path.book(step(*waits, ended_ns=350))
    path.spend(Stage.DETOKENIZE)  # the clock's next look was before
    assert path.stages == {
        "tokenize": 100,
        "orchestrator": 10 + 10 + 110,
        "draft_compute": 20,
        "verify_queue": 10,
        "verify_compute": 60,
        "verify_network": 30,
        "detokenize": 0,
    }
    assert sum(path.stages.values()) == path.wall_ns == 350


@pytest.mark.usefixtures("clock")
def test_the_prefill_s_queue_is_part_of_reading_and_its_network_is_not() -> None:
    path = CriticalPath()
    path.book(
        step(Wait(Stage.PREFILL_TARGET, 0, 100, Timings(queue_ns=9, total_ns=80)), ended_ns=100)
    )
    path.book(step(Wait(Stage.PREFILL_DRAFT, 100, 130), ended_ns=130))
    assert path.stages["prefill_target"] == 80
    assert path.stages["prefill_network"] == 20
    assert path.stages["prefill_draft"] == 30


@pytest.mark.usefixtures("clock")
def test_a_server_that_claims_more_than_was_waited_gets_what_was_waited() -> None:
    path = CriticalPath()
    first = Wait(Stage.DRAFT_COMPUTE, 0, 100, Timings(queue_ns=500, total_ns=900))
    second = Wait(Stage.DRAFT_COMPUTE, 100, 200, Timings(queue_ns=20, total_ns=900))
    path.book(step(first, second, ended_ns=200))
    draft = {key: ns for key, ns in path.stages.items() if key.startswith("draft")}
    assert draft == {"draft_queue": 120, "draft_compute": 80, "draft_network": 0}
    # A pipelined request had been worked on before.
    assert path.hidden == {"draft_compute": 1600}


@pytest.mark.usefixtures("clock")
def test_no_stage_is_negative_where_a_queue_began_before_the_answer_before() -> None:
    path = CriticalPath()
    timings = Timings(queue_ns=60, forward_ns=30, total_ns=5)
    path.book(step(Wait(Stage.VERIFY_COMPUTE, 0, 100, timings), ended_ns=100))
    assert path.stages["verify_queue"] == 5
    assert path.stages["verify_compute"] == 0
    assert path.stages["verify_network"] == 95


@pytest.mark.usefixtures("clock")
def test_hidden_work_is_beside_the_path() -> None:
    path = CriticalPath()
    path.book(StepRecord((1,), hidden_draft_ns=7, hidden_prefill_ns=40))
    path.book(StepRecord((1,), hidden_prefill_ns=-5))
    assert path.hidden == {"draft_compute": 7, "prefill_draft": 40}
    assert path.wall_ns == 0


@pytest.mark.usefixtures("clock")
def test_work_on_the_text_is_hidden_behind_the_next_step() -> None:
    path = CriticalPath()
    path.is_stepping = True
    path.book(step(ended_ns=50))  # at 100
    path.spend(Stage.DETOKENIZE)
    path.spend(Stage.DELIVER)
    path.book(step(ended_ns=1000))
    assert path.hidden == {"detokenize": 100, "deliver": 100}
    assert path.stages == {"orchestrator": 1000}


@pytest.mark.usefixtures("clock")
def test_what_a_slow_client_takes_longer_than_the_next_step_is_on_the_path() -> None:
    path = CriticalPath()
    path.is_stepping = True
    path.book(step(ended_ns=50))  # at 100
    path.spend(Stage.DELIVER)
    path.book(step(ended_ns=170))
    path.is_stepping = False
    path.spend(Stage.DETOKENIZE)  # at 400
    assert path.hidden == {"deliver": 70}
    assert path.stages == {"orchestrator": 170, "deliver": 30, "detokenize": 200}
    assert sum(path.stages.values()) == path.wall_ns
