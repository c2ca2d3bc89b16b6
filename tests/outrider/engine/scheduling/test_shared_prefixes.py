"""What is not read twice: prompts that begin like what some slot has read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import pytest

from outrider.engine.scheduling.job import MAX_MISSED
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.protocol.messages import Timings
from tests.support.recording_engine import RecordingEngine, Steps, engine, make

__all__ = ["engine", "make"]  # fixtures


def read(scheduler: Scheduler, slot: int, token_ids: Sequence[int]) -> Future[Timings]:
    """Submits a job that reads a whole sequence."""
    job = Steps(slot, len(token_ids))
    job.token_ids = list(token_ids)
    return scheduler.submit(job)


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
    slot = asyncio.run(scheduler.acquire_in_order(1))
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
    over.num_missed = MAX_MISSED  # its turn
    engine.gate.release(100)
    for future in futures:
        future.result(10)
    late_chunks = [chunk for chunks in engine.passes for chunk in chunks if chunk.slot == late]
    assert (late_chunks[0].start, late_chunks[0].copy_from) == (0, None)
    assert sum(len(chunk.token_ids) for chunk in late_chunks) == 30


def test_a_copy_that_finds_no_room_is_made_when_it_does(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    """As predrafts make them, which are left out of passes that are full."""
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
