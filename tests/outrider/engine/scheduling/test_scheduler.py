from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from outrider.engine.scheduling.job import Job
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.errors import Cancelled, NoFreeSlot, ServiceUnavailable
from tests.support.recording_engine import RecordingEngine, Steps, engine, make

__all__ = ["engine", "make"]  # fixtures


def test_a_long_prompt_is_read_in_chunks(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(token_budget=8)
    scheduler.submit(Steps(scheduler.acquire(), 20)).result(10)
    [first], [second] = engine.passes  # nobody else is there: the second takes more
    assert [(c.start, c.end, c.num_logits) for c in (first, second)] == [(0, 8, 0), (8, 20, 1)]


def test_tokens_whose_logits_are_wanted_stay_together(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    """A verification that does not fit the budget: 6 tokens of context, 5 rows wanted."""

    class Verification(Job):
        def advance(self, logits: torch.Tensor) -> list[int]:
            assert logits.shape == (5, 4)
            return []

    scheduler = make(token_budget=8)
    scheduler.submit(Verification(scheduler.acquire(), 0, range(11), num_logits=5)).result(10)
    assert [(c.start, c.end, c.num_logits) for [c] in engine.passes] == [(0, 6, 0), (6, 11, 5)]


def test_more_logits_than_the_budget_take_a_pass_of_their_own(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    class Verification(Job):
        def advance(self, logits: torch.Tensor) -> list[int]:
            return []

    engine.gate = threading.Semaphore(0)
    scheduler = make(token_budget=8)
    first, wide, short = (scheduler.acquire() for _ in range(3))
    scheduler.submit(Steps(first, 1))
    engine.entered.acquire(timeout=10)
    wide_future = scheduler.submit(Verification(wide, 0, range(12), num_logits=12))
    short_future = scheduler.submit(Steps(short, 1))
    engine.gate.release(10)
    short_future.result(10)
    wide_future.result(10)
    sizes = [[(c.slot, len(c.token_ids)) for c in chunks] for chunks in engine.passes[1:]]
    assert sizes == [[(short, 1)], [(wide, 12)]]


def test_what_waits_during_a_pass_shares_the_next_one(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    engine.gate = threading.Semaphore(0)
    scheduler = make()
    slots = [scheduler.acquire() for _ in range(3)]
    futures = [scheduler.submit(Steps(slots[0], 1))]
    engine.entered.acquire(timeout=10)
    futures += [scheduler.submit(Steps(slot, 2)) for slot in slots[1:]]
    engine.gate.release(10)
    for future in futures:
        future.result(10)
    assert [len(chunks) for chunks in engine.passes] == [1, 2]


def test_short_jobs_go_before_the_chunks_of_a_long_prompt(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    engine.gate = threading.Semaphore(0)
    scheduler = make(token_budget=8)
    first, long, short = (scheduler.acquire() for _ in range(3))
    scheduler.submit(Steps(first, 1))
    engine.entered.acquire(timeout=10)
    long_future = scheduler.submit(Steps(long, 30))
    short_future = scheduler.submit(Steps(short, 1, num_steps=3))
    engine.gate.release(100)
    short_future.result(10)
    long_future.result(10)
    shared = [[(c.slot, len(c.token_ids)) for c in chunks] for chunks in engine.passes[1:4]]
    assert shared == [[(short, 1), (long, 7)]] * 3


def test_a_job_takes_as_many_passes_as_it_wants(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make()
    job = Steps(scheduler.acquire(), 3, num_steps=4)
    timings = scheduler.submit(job).result(10)
    assert [(c.start, c.end) for [c] in engine.passes] == [(0, 3), (3, 4), (4, 5), (5, 6)]
    assert timings.forward_ns > 0


def test_slots_run_out_and_come_back(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(num_slots=1)
    slot = scheduler.acquire()
    with pytest.raises(NoFreeSlot):
        scheduler.acquire()
    scheduler.release(slot)
    scheduler.submit(Steps(slot, 1)).exception(10)
    assert scheduler.acquire() == slot


def test_who_gives_up_waiting_for_a_slot_takes_nobodys_place(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(num_slots=1)
    slot = scheduler.acquire()
    for _ in range(5):
        scheduler.request_slot(max_waiting=1).cancel()
        assert scheduler.num_waiting == 0
    patient = scheduler.request_slot(max_waiting=1)
    with pytest.raises(NoFreeSlot):
        scheduler.request_slot(max_waiting=1)
    scheduler.release(slot)
    assert patient.result(10) == slot


def test_a_released_slot_is_free_only_after_the_pass_that_uses_it(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    engine.gate = threading.Semaphore(0)
    scheduler = make(num_slots=1, token_budget=8)
    slot = scheduler.acquire()
    future = scheduler.submit(Steps(slot, 20))
    engine.entered.acquire(timeout=10)
    scheduler.release(slot)
    with pytest.raises(NoFreeSlot):
        scheduler.acquire()
    engine.gate.release(10)
    with pytest.raises(Cancelled):
        future.result(10)
    assert len(engine.passes) == 1  # the rest of the prompt was dropped
    assert scheduler.num_free_slots == 1


def test_closing_an_idle_session_does_not_free_one_in_the_pass(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    engine.gate = threading.Semaphore(0)
    scheduler = make(num_slots=3)
    busy, idle, other = (scheduler.acquire() for _ in range(3))
    future = scheduler.submit(Steps(busy, 1))
    engine.entered.acquire(timeout=10)
    waiting = scheduler.submit(Steps(other, 1))
    scheduler.release(busy)
    scheduler.release(idle)
    assert scheduler.acquire() == idle
    with pytest.raises(NoFreeSlot):
        scheduler.acquire()
    engine.gate.release(10)
    future.result(10)
    waiting.result(10)
    assert scheduler.acquire() == busy


def test_a_failing_pass_fails_its_jobs_and_no_more(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make()
    engine.failure = RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom"):
        scheduler.submit(Steps(scheduler.acquire(), 1)).result(10)
    engine.failure = None
    scheduler.submit(Steps(scheduler.acquire(), 1)).result(10)


def test_one_job_that_chokes_on_its_logits_leaves_the_others_alone(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    class Choking(Steps):
        def advance(self, logits: torch.Tensor) -> list[int]:
            raise ValueError("choked")

    engine.gate = threading.Semaphore(0)
    scheduler = make()
    slots = [scheduler.acquire() for _ in range(3)]
    scheduler.submit(Steps(slots[0], 1))
    engine.entered.acquire(timeout=10)
    choking = scheduler.submit(Choking(slots[1], 1))
    healthy = scheduler.submit(Steps(slots[2], 1))
    engine.gate.release(10)
    healthy.result(10)
    with pytest.raises(ValueError, match="choked"):
        choking.result(10)


def test_closing_fails_what_waits(engine: RecordingEngine, make: Callable[..., Scheduler]) -> None:
    engine.gate = threading.Semaphore(0)
    scheduler = make(token_budget=8)
    future = scheduler.submit(Steps(scheduler.acquire(), 20))
    engine.entered.acquire(timeout=10)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    while not scheduler._closed:
        pass
    engine.gate.release(10)
    closing.join(10)
    with pytest.raises(ServiceUnavailable):
        future.result(10)
    with pytest.raises(ServiceUnavailable):
        scheduler.submit(Steps(0, 1))


def test_what_follows_a_job_fails_if_the_scheduler_is_closed_meanwhile(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    """As a run-ahead does, for whose tokens somebody waits."""
    scheduler = make()
    slot = scheduler.acquire()
    follower = Steps(slot, 1)
    closing = threading.Thread(target=scheduler.close)

    class Leading(Job):
        def advance(self, logits: torch.Tensor) -> list[int]:
            closing.start()
            with pytest.raises(ServiceUnavailable):
                while True:  # until it is closed
                    scheduler.submit(Steps(slot, 1))
            scheduler.follow_up(self, lambda: [follower])
            return []

    scheduler.submit(Leading(slot, 0, [5], num_logits=1)).result(10)
    closing.join()
    with pytest.raises(ServiceUnavailable):
        follower.done.result(10)
