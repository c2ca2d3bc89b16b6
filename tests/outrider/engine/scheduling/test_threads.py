"""Fewer threads compute while others need the cores, and no text sees bits of two numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from outrider.engine.scheduling import threads
from outrider.engine.scheduling.batch_limits import BatchLimits
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.engine.scheduling.threads import AdaptiveThreads, thread_counts, use_threads
from tests.support.recording_engine import RecordingEngine, Steps

QUIET = {4: 0.010, 2: 0.015, 1: 0.025}


class Machine:
    """Cores that others may need, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_free = 4
        self.num_looks = 0

    def is_busy(self, count: int) -> bool:
        self.num_looks += 1
        self.now += 0.01
        return count > self.num_free

    def threads(self, any_time: bool = True) -> AdaptiveThreads:
        return AdaptiveThreads(QUIET, 0.001, any_time, is_busy=self.is_busy, clock=lambda: self.now)

    def run(self, chosen: AdaptiveThreads, seconds: float, between_texts: bool = False) -> None:
        """Passes of one token, for so long: thirty times as long where threads wait for cores."""
        end = self.now + seconds
        while self.now < end:
            chosen.change(between_texts)
            factor = 30 if chosen.current > self.num_free else 1
            took = factor * QUIET[chosen.current]
            self.now += took
            chosen.observe(1, took)


@pytest.fixture(autouse=True)
def threads_stay() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize(
    ("most", "expected"), [(1, (1,)), (2, (2, 1)), (3, (3, 1)), (8, (8, 4, 1))]
)
def test_all_half_and_one_may_be_used(most: int, expected: tuple[int, ...]) -> None:
    assert thread_counts(most) == expected


@pytest.mark.parametrize(("num_free", "expected"), [(3, 2), (1, 1), (0, 1)])
def test_a_busy_machine_gets_fewer_threads_and_a_quiet_one_all(
    num_free: int, expected: int, machine: Machine
) -> None:
    chosen = machine.threads()
    machine.run(chosen, 5)
    assert (chosen.current, machine.num_looks) == (4, 0)
    machine.num_free = num_free
    machine.run(chosen, 10)
    assert chosen.current == torch.get_num_threads() == expected
    machine.num_free = 4
    machine.run(chosen, 40)
    assert chosen.current == torch.get_num_threads() == 4


def test_a_few_slow_passes_are_enough(machine: Machine) -> None:
    chosen = machine.threads()
    machine.run(chosen, 1)
    machine.num_free = 1
    for _ in range(3):
        chosen.observe(1, 0.3)
    machine.now += 1
    assert chosen.change(between_texts=False)
    assert chosen.current < 4


def test_passes_that_are_long_for_other_reasons_change_nothing(machine: Machine) -> None:
    """Long contexts, or sessions that share passes. Looks become rare: each takes some time."""
    chosen = machine.threads()
    for _ in range(2000):
        chosen.change(between_texts=True)
        machine.now += 0.1
        chosen.observe(1, 0.1)
    assert chosen.current == 4
    assert machine.num_looks < 40


@pytest.mark.parametrize("num_threads", [1, 4])
def test_threads_that_do_not_adapt_stay(num_threads: int) -> None:
    """As on a GPU, or where a fixed number was asked for: nothing was measured."""
    torch.set_num_threads(num_threads)
    scheduler = Scheduler(RecordingEngine(), 1)
    try:
        timings = scheduler.submit(Steps(scheduler.acquire(), 1, 9)).result(timeout=10)
        assert timings.num_threads == num_threads
    finally:
        scheduler.close()


def test_prompts_are_not_compared(machine: Machine) -> None:
    chosen = machine.threads()
    for _ in range(10):
        chosen.observe(200, 9.9)
    machine.now += 1
    chosen.change(between_texts=True)
    assert machine.num_looks == 0


def test_a_step_time_that_was_measured_on_a_busy_machine_is_corrected(machine: Machine) -> None:
    chosen = AdaptiveThreads(
        {2: 9.9, 1: 9.9}, 0.0, is_busy=machine.is_busy, clock=lambda: machine.now
    )
    chosen.observe(1, 0.01)
    machine.num_free = 1
    for _ in range(4):
        chosen.observe(1, 0.3)
    chosen.change(between_texts=True)
    assert chosen.current == 1


def test_cores_that_come_and_go_are_tried_more_and_more_seldom(machine: Machine) -> None:
    chosen, changes = machine.threads(), 0
    for _ in range(300):  # they are free for as long as it takes to notice
        machine.num_free = 0 if chosen.current > 1 else 4
        before = chosen.current
        machine.run(chosen, 1)
        changes += chosen.current != before
    assert changes < 120


def test_texts_keep_their_number_where_it_changes_their_bits(machine: Machine) -> None:
    chosen = machine.threads(any_time=False)
    machine.num_free = 1
    machine.run(chosen, 3)
    assert chosen.current == 4
    assert not chosen.holds_up
    machine.run(chosen, threads.DRAIN_SECONDS)
    assert chosen.current == 4
    assert chosen.holds_up  # new texts wait
    assert chosen.change(between_texts=True)
    assert chosen.current < 4
    assert not chosen.holds_up


def test_new_texts_wait_until_those_that_run_have_ended(machine: Machine) -> None:
    engine, chosen = RecordingEngine(), machine.threads(any_time=False)
    scheduler = Scheduler(engine, 2, BatchLimits(), chosen)
    try:
        old, new = scheduler.acquire_all(2)
        scheduler.submit(Steps(old, 1)).result(timeout=10)
        machine.num_free = 1
        for _ in range(4):
            chosen.observe(1, 0.3)
        scheduler.submit(Steps(old, 2)).result(timeout=10)  # finds out
        machine.now += threads.DRAIN_SECONDS
        waiting = scheduler.submit(Steps(new, 3))
        timings = scheduler.submit(Steps(old, 3)).result(timeout=10)
        assert timings.num_threads == 4
        assert not waiting.done()
        scheduler.release(old)
        assert waiting.result(timeout=10).num_threads == chosen.current < 4
    finally:
        scheduler.close()


def test_what_was_read_with_another_number_is_read_again(machine: Machine) -> None:
    engine, chosen = RecordingEngine(), machine.threads(any_time=False)
    scheduler = Scheduler(engine, 1, BatchLimits(), chosen)

    def read() -> int:
        slot = scheduler.request_slot(1).result(timeout=10)
        before = scheduler.num_reused_tokens
        scheduler.submit(Steps(slot, 40)).result(timeout=10)
        scheduler.release(slot)
        return scheduler.num_reused_tokens - before

    try:
        read()
        assert read() == 39
        machine.num_free = 1
        for _ in range(4):
            chosen.observe(1, 0.3)
        assert read() == 0
        assert read() == 39
    finally:
        scheduler.close()


@pytest.mark.parametrize("count", [2, 3])
def test_a_look_is_by_the_threads_that_are_asked_about(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[int] = set()
    zeros = torch.zeros

    def noting(*sizes: int) -> torch.Tensor:
        used.add(torch.get_num_threads())
        return zeros(*sizes)

    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "zeros", noting)
    threads.is_busy(count)
    assert used == {count}
    assert torch.get_num_threads() == 1


def test_a_machine_that_is_busy_at_the_start_gets_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "is_busy", lambda count: count > 2)
    assert use_threads(4, adapt=True) == (4, 2, 1)
    assert torch.get_num_threads() == 2
    assert use_threads(4, adapt=False) == (4,)
    assert torch.get_num_threads() == 4


def test_a_device_that_is_no_cpu_has_none() -> None:
    before = torch.get_num_threads()
    scheduler = Scheduler(RecordingEngine(), 1, threads=AdaptiveThreads({0: 0.0}))
    try:
        timings = scheduler.submit(Steps(scheduler.acquire(), 1, 9)).result(timeout=10)
        assert (timings.num_threads, torch.get_num_threads()) == (0, before)
    finally:
        scheduler.close()


def test_passes_of_several_tokens_say_nothing_of_one(machine: Machine) -> None:
    """They take less than was measured by fewer threads, and a busy machine is still noticed."""
    chosen = machine.threads()
    for _ in range(100):
        chosen.observe(9, 0.011)
    machine.run(chosen, 5)
    assert (chosen.current, machine.num_looks) == (4, 0)


@pytest.mark.parametrize("is_busy_again", [True, False])
def test_a_change_that_is_due_no_longer_is_not_made(is_busy_again: bool, machine: Machine) -> None:
    chosen = machine.threads(any_time=False)
    if is_busy_again:
        machine.num_free = 1
        machine.run(chosen, 9, between_texts=True)
        expected = chosen.current
        machine.num_free = 4
        machine.run(chosen, 20)  # more are due as soon as the text has ended
        machine.num_free = 1
    else:
        expected = chosen.current
        machine.num_free = 1
        machine.run(chosen, 2)  # fewer are due
        machine.num_free = 4
    machine.run(chosen, 4)
    assert not chosen.change(between_texts=True)
    assert chosen.current == expected
    assert not chosen.holds_up


def test_a_machine_that_stays_busy_is_seldom_looked_at(machine: Machine) -> None:
    machine.num_free = 1
    chosen = machine.threads()
    machine.run(chosen, 10)
    before = machine.num_looks
    machine.run(chosen, 100)
    assert chosen.current == 1
    assert machine.num_looks - before <= 100
