"""Who shares a pass, who waits, and what is not read twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from unittest import mock

import pytest

from outrider.engine.job import PATIENCE
from outrider.engine.scheduler import Scheduler
from outrider.messages import Timings
from tests.recording_engine import RecordingEngine, Steps, engine, make

__all__ = ["engine", "make"]  # fixtures


def read(scheduler: Scheduler, slot: int, token_ids: Sequence[int]) -> Future[Timings]:
    """Submits a job that reads a whole sequence."""
    job = Steps(slot, len(token_ids))
    job.token_ids = list(token_ids)
    return scheduler.submit(job)


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
    assert engine.passes[1 + PATIENCE][0].slot not in short


def test_whose_turn_has_come_leaves_half_to_the_others(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    engine.gate = threading.Semaphore(0)
    scheduler = make(num_slots=6, token_budget=8)
    first, late, *short = (scheduler.acquire() for _ in range(6))
    scheduler.submit(Steps(first, 1))
    engine.entered.acquire(timeout=10)
    prompt = Steps(late, 30)
    prompt.num_missed = PATIENCE
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


def test_a_prompt_starts_from_what_another_slot_has_read(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(token_budget=100)
    text = list(range(40))
    first, second = scheduler.acquire(), scheduler.acquire()
    read(scheduler, first, text).result(10)
    read(scheduler, second, [*text[:30], 99, 98]).result(10)
    [chunk] = engine.passes[1]
    assert (chunk.start, chunk.token_ids, chunk.copy_from) == (30, [99, 98], (first, 0))
    assert scheduler.num_reused_tokens == 30


def test_a_whole_prompt_that_was_read_is_read_at_its_last_token(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(num_slots=1, token_budget=100)
    slot = scheduler.acquire()
    read(scheduler, slot, range(20)).result(10)
    scheduler.release(slot)
    slot = asyncio.run(scheduler.acquire_in_turn(1))
    read(scheduler, slot, range(20)).result(10)  # a session after it, in its slot
    [chunk] = engine.passes[1]
    assert (chunk.start, chunk.token_ids, chunk.copy_from) == (19, [19], None)


def test_what_was_rolled_back_is_not_taken_for_read(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(token_budget=100)
    first, second = scheduler.acquire(), scheduler.acquire()
    read(scheduler, first, range(40)).result(10)
    again = Steps(first, 1)
    again.start, again.token_ids = 25, [7]
    scheduler.submit(again).result(10)
    read(scheduler, second, range(40)).result(10)
    [chunk] = engine.passes[2]
    assert (chunk.start, chunk.copy_from) == (25, (first, 0))


def test_a_failed_pass_leaves_nothing_to_start_from(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(token_budget=100)
    first, second = scheduler.acquire(), scheduler.acquire()
    engine.failure = RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom"):
        read(scheduler, first, range(40)).result(10)
    engine.failure = None
    read(scheduler, second, range(40)).result(10)
    assert engine.passes[1][0].start == 0


def test_a_prompt_that_finds_no_room_starts_from_what_is_there_when_it_does(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    """It had found a prefix in a slot that is overwritten before its turn comes."""
    engine.gate = threading.Semaphore(0)
    scheduler = make(token_budget=20)
    source, late = scheduler.acquire(), scheduler.acquire()
    engine.gate.release(2)
    read(scheduler, source, range(30)).result(10)
    scheduler.submit(Steps(scheduler.acquire(), 1))
    for _ in range(3):
        engine.entered.acquire(timeout=10)
    over = Steps(source, 20)
    over.token_ids = [77] * 20
    futures = [scheduler.submit(over), read(scheduler, late, range(30))]
    over.num_missed = PATIENCE  # its turn
    engine.gate.release(100)
    for future in futures:
        future.result(10)
    late_chunks = [chunk for chunks in engine.passes for chunk in chunks if chunk.slot == late]
    assert (late_chunks[0].start, late_chunks[0].copy_from) == (0, None)
    assert sum(len(chunk.token_ids) for chunk in late_chunks) == 30


def test_a_copy_that_finds_no_room_is_made_when_it_does(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    """As preparations make them, which are left out of passes that are full."""
    engine.gate = threading.Semaphore(0)
    scheduler = make(token_budget=20)
    source, busy, late = (scheduler.acquire() for _ in range(3))
    engine.gate.release(2)
    read(scheduler, source, range(30)).result(10)
    futures = [scheduler.submit(Steps(busy, 1))]
    engine.entered.acquire(timeout=10)
    futures.append(read(scheduler, busy, range(100, 120)))
    copying = Steps(late, 21)
    copying.start, copying.copy_from = 25, (source, 0)
    futures.append(scheduler.submit(copying))
    engine.gate.release(100)
    for future in futures:
        future.result(10)
    late_chunks = [chunk for chunks in engine.passes for chunk in chunks if chunk.slot == late]
    assert (late_chunks[0].start, late_chunks[0].copy_from) == (25, (source, 0))
    assert [chunk.copy_from for chunk in late_chunks[1:]] == [None]
