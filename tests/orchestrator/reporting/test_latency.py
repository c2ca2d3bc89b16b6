from __future__ import annotations

import itertools

import pytest

from orchestrator.reporting import latency
from orchestrator.reporting.latency import CriticalPath
from outrider.protocol.messages import Timings


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves on by 100 ns at each look."""
    ticks = itertools.count(0, 100)
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: next(ticks))


@pytest.mark.usefixtures("clock")
def test_every_interval_is_booked_once() -> None:
    path = CriticalPath()
    path.spend("tokenize")
    path.spend_waiting("verify", Timings(queue_ns=10, forward_ns=40, sample_ns=5, total_ns=70))
    path.spend("tokenize")
    assert path.stages == {
        "tokenize": 200,
        "verify_queue": 10,
        "verify_compute": 60,
        "verify_network": 30,
    }
    assert sum(path.stages.values()) == path.wall_ns == 300


@pytest.mark.usefixtures("clock")
def test_a_server_that_claims_more_than_was_waited_gets_what_was_waited() -> None:
    path = CriticalPath()
    path.spend_waiting("draft", Timings(queue_ns=500, total_ns=900))
    path.spend_waiting("draft", Timings(queue_ns=20, total_ns=900))
    assert path.stages == {"draft_queue": 120, "draft_compute": 80, "draft_network": 0}
    # What was sent ahead had been worked on before.
    assert path.hidden == {"draft_compute": 1600}


@pytest.mark.usefixtures("clock")
def test_no_stage_is_negative_where_a_queue_began_before_the_answer_before() -> None:
    path = CriticalPath()
    path.spend_waiting("verify", Timings(queue_ns=60, forward_ns=30, total_ns=5))
    assert path.stages == {"verify_queue": 5, "verify_compute": 0, "verify_network": 95}


@pytest.mark.usefixtures("clock")
def test_hidden_work_is_beside_the_path() -> None:
    path = CriticalPath()
    path.hide("prefill_draft", 40)
    path.hide("prefill_draft", -5)
    assert path.hidden == {"prefill_draft": 40}
    assert path.wall_ns == 0
