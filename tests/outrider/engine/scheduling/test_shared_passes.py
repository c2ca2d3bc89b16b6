"""Who shares a pass, and who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable
from unittest import mock

import pytest

from outrider.engine.scheduling.job import MAX_MISSED
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.errors import Cancelled
from tests.support.recording_engine import RecordingEngine, Steps, engine, make

__all__ = ["engine", "make"]  # fixtures


def test_nobody_is_left_out_for_ever(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    """Short jobs that fill every pass, and a prompt beside them."""
    engine.gate = threading.Semaphore(0)
    scheduler = make(num_slots=4, token_budget=2)
    first, *short = (scheduler.acquire() for _ in range(3))
    scheduler.submit(Steps(first, 1))
    engine.entered.acquire(timeout=10)
    for slot in short:
        scheduler.submit(Steps(slot, 1, num_steps=1000))
    prompt = scheduler.submit(Steps(scheduler.acquire(), 3))
    engine.gate.release(30)
    prompt.result(10)
    assert engine.passes[1 + MAX_MISSED][0].slot not in short


def test_whose_turn_has_come_leaves_half_to_the_others(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    engine.gate = threading.Semaphore(0)
    scheduler = make(num_slots=6, token_budget=8)
    first, late, *short = (scheduler.acquire() for _ in range(6))
    scheduler.submit(Steps(first, 1))
    engine.entered.acquire(timeout=10)
    prompt = Steps(late, 30)
    prompt.num_missed = MAX_MISSED
    futures = [scheduler.submit(prompt), *(scheduler.submit(Steps(slot, 1)) for slot in short)]
    engine.gate.release(100)
    for future in futures:
        future.result(10)
    assert [(c.slot, len(c.token_ids)) for c in engine.passes[1]][:2] == [(late, 4), (short[0], 1)]
    assert len(engine.passes[1]) == 5


def test_a_pass_waits_for_the_sessions_of_the_last_one(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(gather_seconds=20.0)  # more than the test may take: who is missing must come
    engine.gate = threading.Semaphore(0)
    slots = [scheduler.acquire() for _ in range(4)]
    futures = [scheduler.submit(Steps(slots[3], 1))]
    engine.entered.acquire(timeout=10)
    futures += [scheduler.submit(Steps(slot, 1)) for slot in slots]
    engine.gate.release(100)
    for future in futures:
        future.result(10)
    futures = [scheduler.submit(Steps(slot, 1)) for slot in slots[:2]]
    scheduler.release(slots[3])  # who is gone is not waited for
    futures.append(scheduler.submit(Steps(slots[2], 1)))
    for future in futures:
        future.result(10)
    assert [len(chunks) for chunks in engine.passes] == [1, 4, 3]


def test_who_goes_while_it_waits_for_others_ends_nothing(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    """Nobody is left for the pass then; the next one to come must get one all the same."""
    scheduler = make(gather_seconds=20.0)  # more than the test may take
    slots = [scheduler.acquire() for _ in range(3)]
    engine.gate = threading.Semaphore(0)
    futures = [scheduler.submit(Steps(slots[0], 1))]
    engine.entered.acquire(timeout=10)
    futures += [scheduler.submit(Steps(slot, 1)) for slot in slots]
    engine.gate.release(100)
    for future in futures:
        future.result(10)
    wait, waits = scheduler._changed.wait, threading.Semaphore(0)

    def waiting(seconds: float | None = None) -> bool:
        waits.release()
        return wait(seconds)

    with mock.patch.object(scheduler._changed, "wait", waiting):
        leaving = scheduler.submit(Steps(slots[0], 1))
        assert waits.acquire(timeout=10)  # for the other two
        scheduler.release(slots[0])
        assert waits.acquire(timeout=10)  # for whoever comes
    with pytest.raises(Cancelled):
        leaving.result(10)
    futures = [scheduler.submit(Steps(slot, 1)) for slot in slots[1:]]
    for future in futures:
        future.result(10)


def test_what_is_done_in_the_background_meanwhile_changes_nothing_in_that(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    """Two sessions of two slots each, which predraft something until they come back."""
    scheduler = make(gather_seconds=20.0)
    first, spare, second, _ = (scheduler.acquire() for _ in range(4))
    engine.gate = threading.Semaphore(0)
    futures = [scheduler.submit(Steps(first, 1))]
    engine.entered.acquire(timeout=10)
    # The first session is asked for something else, beside the second.
    futures += [scheduler.submit(Steps(slot, 1)) for slot in (first, second)]
    engine.gate.release(100)
    for future in futures:
        future.result(10)
    scheduler.submit(Steps(spare, 1, is_background=True, session=first)).result(10)
    # It comes back in the other slot, and is the same session.
    futures = [scheduler.submit(Steps(spare, 1, session=first))]
    futures.append(scheduler.submit(Steps(second, 1)))
    for future in futures:
        future.result(10)
    slots = [{chunk.slot for chunk in chunks} for chunks in engine.passes]
    assert slots == [{first}, {first, second}, {spare}, {spare, second}]


def test_nobody_waits_for_what_was_done_in_the_background(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(gather_seconds=20.0)  # more than the test may take
    main, spare = scheduler.acquire(), scheduler.acquire()
    scheduler.submit(Steps(spare, 1, is_background=True, session=main)).result(10)
    scheduler.submit(Steps(main, 1)).result(10)
    scheduler.submit(Steps(spare, 1, session=main)).result(10)
    assert [[chunk.slot for chunk in chunks] for chunks in engine.passes] == [
        [spare],
        [main],
        [spare],
    ]


def test_what_somebody_waits_for_goes_before_the_background(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make()
    slots = [scheduler.acquire() for _ in range(4)]
    engine.gate = threading.Semaphore(0)
    futures = [scheduler.submit(Steps(slots[0], 1))]
    engine.entered.acquire(timeout=10)
    futures.append(scheduler.submit(Steps(slots[1], 1, is_background=True)))
    futures += [scheduler.submit(Steps(slot, 1, num_steps=2)) for slot in slots[2:]]
    engine.gate.release(100)
    for future in futures:
        future.result(10)
    in_passes = [{chunk.slot for chunk in chunks} for chunks in engine.passes]
    assert in_passes == [{slots[0]}, set(slots[2:]), set(slots[2:]), {slots[1]}]


def test_a_pass_does_not_wait_long(engine: RecordingEngine, make: Callable[..., Scheduler]) -> None:
    scheduler = make(gather_seconds=0.001)
    engine.gate = threading.Semaphore(0)
    slots = [scheduler.acquire() for _ in range(3)]
    scheduler.submit(Steps(slots[2], 1))
    engine.entered.acquire(timeout=10)
    futures = [scheduler.submit(Steps(slot, 1)) for slot in slots[:2]]
    engine.gate.release(100)
    for future in futures:
        future.result(10)
    scheduler.submit(Steps(slots[0], 1)).result(10)
    assert [len(chunks) for chunks in engine.passes] == [1, 2, 1]


@pytest.mark.parametrize(("num_tokens", "patience"), [(1, 0.001), (16, 0.001), (17, 0.005)])
def test_a_pass_that_reads_a_prompt_waits_longer(
    engine: RecordingEngine, make: Callable[..., Scheduler], num_tokens: int, patience: float
) -> None:
    """Who is just late for it would wait for all of it."""
    scheduler = make(gather_seconds=0.001, token_budget=100)
    late, other = scheduler.acquire(), scheduler.acquire()
    scheduler.submit(Steps(late, 1)).result(10)
    with mock.patch.object(scheduler._changed, "wait", wraps=scheduler._changed.wait) as wait:
        scheduler.submit(Steps(other, num_tokens)).result(10)
    timeouts = [call.args[0] for call in wait.call_args_list if call.args]
    assert timeouts == [pytest.approx(patience)]
    assert [len(chunks) for chunks in engine.passes] == [1, 1]
