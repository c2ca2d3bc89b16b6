from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import pytest
import torch

from outrider.engine.chunk import Chunk
from outrider.engine.job import PATIENCE, Job
from outrider.engine.pace import Pace
from outrider.engine.scheduler import Scheduler
from outrider.errors import Cancelled, NoFreeSlot, ServiceUnavailable
from outrider.messages import Timings


class RecordingEngine:
    """Notes every pass; each pass waits for `gate` if one is set."""

    def __init__(self) -> None:
        self.passes: list[list[Chunk]] = []
        self.gate: threading.Semaphore | None = None
        self.entered = threading.Semaphore(0)
        self.failure: Exception | None = None

    def forward(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        self.passes.append(list(chunks))
        self.entered.release()
        if self.gate is not None:
            assert self.gate.acquire(timeout=10)
        if self.failure is not None:
            raise self.failure
        return [torch.zeros(chunk.num_logits, 4) for chunk in chunks]


class Steps(Job):
    """Wants `num_steps` passes after its tokens are read."""

    def __init__(self, slot: int, num_tokens: int, num_steps: int = 1) -> None:
        super().__init__(slot, 0, range(num_tokens), num_logits=1)
        self.num_steps = num_steps

    def advance(self, logits: torch.Tensor) -> list[int]:
        assert logits.shape == (1, 4)
        self.num_steps -= 1
        return [7] if self.num_steps else []


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine()


@pytest.fixture
def make(engine: RecordingEngine) -> Iterator[Callable[..., Scheduler]]:
    schedulers = []

    def make_scheduler(
        num_slots: int = 4, token_budget: int = 8, gather_seconds: float = 0.0
    ) -> Scheduler:
        schedulers.append(Scheduler(engine, num_slots, Pace(token_budget, gather_seconds)))
        return schedulers[-1]

    yield make_scheduler
    if engine.gate is not None:
        engine.gate.release(1000)
    for scheduler in schedulers:
        scheduler.close()


def test_a_long_prompt_is_read_in_chunks(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(token_budget=8)
    scheduler.submit(Steps(scheduler.acquire(), 20)).result(10)
    [first], [second], [third] = engine.passes
    assert [(c.start, c.end, c.num_logits) for c in (first, second, third)] == [
        (0, 8, 0),
        (8, 16, 0),
        (16, 20, 1),
    ]


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
