from __future__ import annotations

import pytest

from orchestrator.reporting import latency, timeline
from orchestrator.reporting.latency import CriticalPath
from orchestrator.reporting.timeline import MAX_INTERVALS, Timeline
from orchestrator.step import DraftSource, StepRecord, Wait
from outrider.protocol.messages import Interval, Predraft, Timings
from outrider.protocol.stages import Stage


class Clock:
    now_ns = 1000

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (timeline, latency):
        monkeypatch.setattr(module.time, "perf_counter_ns", clock)
    return clock


def of_lane(times: Timeline, track: str, lane: str) -> list[tuple[str, int, int]]:
    return [
        (one.name, one.begin_ns, one.begin_ns + one.duration_ns)
        for one in times.intervals
        if (one.track, one.lane) == (track, lane)
    ]


def test_a_services_work_lies_in_the_middle_of_the_exchange(clock: Clock) -> None:
    times = Timeline()
    times.sent("target", "verify", [1, 2, 3])
    clock.now_ns += 100
    times.answered("target", Timings(queue_ns=10, forward_ns=30, sample_ns=5, total_ns=60), [])
    assert of_lane(times, "target", "session") == [
        ("verify", 20, 80),
        ("queue", 20, 30),
        ("forward", 30, 60),
        ("sample", 60, 65),
    ]
    assert of_lane(times, "network", "to the target") == [("verify", 0, 20)]
    assert of_lane(times, "network", "from the target") == [("verify", 80, 100)]
    assert (
        Interval("target", "session", "verify", 20, 60, {"new_tokens": 3, "draft_tokens": 0})
        in times.intervals
    )


def test_a_message_sent_behind_another_waits_for_it(clock: Clock) -> None:
    times = Timeline()
    times.sent("draft", "follow", [])
    times.sent("draft", "propose", [])
    clock.now_ns += 100
    times.answered("draft", Timings(total_ns=90), [])
    clock.now_ns += 10
    times.answered("draft", Timings(total_ns=15), [])
    assert of_lane(times, "draft", "session") == [("follow", 5, 95), ("propose", 95, 110)]
    assert of_lane(times, "network", "to the draft") == [("follow", 0, 5), ("propose", 5, 95)]


def test_a_service_cannot_have_worked_longer_than_was_waited(clock: Clock) -> None:
    times = Timeline()
    times.sent("draft", "propose", [])
    clock.now_ns += 50
    times.answered("draft", Timings(queue_ns=70, forward_ns=500, total_ns=900), [])
    assert of_lane(times, "draft", "session") == [("propose", 0, 50), ("queue", 0, 50)]


def test_predrafts_end_when_they_were_told_of_in_a_lane_for_each_branch(clock: Clock) -> None:
    times = Timeline()
    times.sent("draft", "propose", [])
    clock.now_ns += 100
    times.answered("draft", Timings(total_ns=80), [])  # from 10 to 90
    clock.now_ns += 200
    times.predrafted(120, [Predraft(5, (7,), (8,), 25), Predraft(5, (9,), (1,), 25)])
    times.predrafted(170, [Predraft(5, (7,), (8, 3), 40)])
    assert of_lane(times, "draft", "predrafts 1") == [
        ("predraft", 105, 130),
        ("predraft", 165, 180),
    ]
    assert of_lane(times, "draft", "predrafts 2") == [("predraft", 105, 130)]
    times.sent("draft", "propose", [])
    times.answered("draft", Timings(), [])
    times.predrafted(50, [Predraft(6, (7,), (8,), 30)])  # a new predraft, though it looks the same
    assert of_lane(times, "draft", "predrafts 1")[-1] == ("predraft", 270, 300)


def test_the_critical_path_and_the_steps(clock: Clock) -> None:
    times = Timeline()
    path = CriticalPath(times)
    clock.now_ns += 7
    path.spend(Stage.TOKENIZE)
    verify = Wait(Stage.VERIFY_COMPUTE, 1007, 1027, Timings(total_ns=5))
    path.book(StepRecord((1, 2, 3), 3, 2, DraftSource.CACHED, waits=(verify,), ended_ns=1027))
    path.book(StepRecord((4,), ended_ns=1027))  # nothing happened meanwhile: nothing to draw
    assert of_lane(times, "orchestrator", "critical path") == [
        ("tokenize", 0, 7),
        ("verify_network", 7, 14),
        ("verify_compute", 14, 19),
        ("verify_network", 19, 27),
    ]
    assert of_lane(times, "orchestrator", "steps") == [("2 of 3 accepted, predrafted", 0, 27)]


def test_a_full_trace_says_so(clock: Clock) -> None:
    times = Timeline()
    for i in range(MAX_INTERVALS + 5):
        times.stage("orchestrator", 1000 + i, 1001 + i)
    assert len(times.intervals) == MAX_INTERVALS + 1
    assert times.intervals[-1].name == "the trace is full"
    assert times.intervals[-2].name == "orchestrator"
