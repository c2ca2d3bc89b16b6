"""Tests of what slots may hold, and of who gets one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from outrider.engine.cache.memory import TokenLimits
from outrider.engine.scheduling.batch_limits import BatchLimits
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.engine.scheduling.slots import Slots
from outrider.errors import NoFreeSlot
from tests.support.recording_engine import RecordingEngine, Steps, engine

__all__ = ["engine"]  # a fixture


def fill(slots: Slots, slot: int, length: int) -> None:
    """As a pass does that reads a text."""
    slots.overwrite(slot, 0, None)
    slots.note_written(slot, length)
    slots.append(slot, range(length))


def taken(slots: Slots, *lengths: int) -> list[int]:
    """Slots for sessions that read so many tokens each."""
    found = [slot for length in lengths for slot in slots.take(1, 100)]
    for slot, length in zip(found, lengths, strict=True):
        fill(slots, slot, length)
    return found


def test_what_was_kept_for_the_longest_time_goes_first() -> None:
    slots = Slots(4, TokenLimits(num_kept=50))
    first, second, third = taken(slots, 40, 20, 30)
    slots.release([second])
    slots.release([first])
    assert slots.surplus() == {second: 0}
    assert slots.longest_prefix(third, list(range(99))) == (first, 40)
    slots.release([third])
    assert slots.surplus() == {first: 0}
    assert slots.num_held == 30
    assert slots.surplus() == {}


def test_a_text_that_exceeds_the_limit_is_not_kept() -> None:
    slots = Slots(1, TokenLimits(num_kept=50))
    slots.release(taken(slots, 60))
    assert slots.surplus() == {0: 0}
    assert slots.longest_prefix(0, list(range(60))) == (0, 0)


def test_copies_are_not_kept() -> None:
    slots = Slots(2, TokenLimits(num_kept=50))
    first, second = taken(slots, 20, 20)
    slots.begin_pass([first])
    slots.release([first], is_copy=True)
    slots.release([second])
    assert slots.surplus() == {}  # the pass still uses it
    slots.end_pass()
    assert slots.surplus() == {first: 0}


def test_sessions_take_the_room_of_what_is_kept() -> None:
    slots = Slots(4, TokenLimits(num_tokens=200, num_kept=100))
    slots.release(taken(slots, 60, 30))
    assert slots.surplus() == {}
    slots.take(1, 80)  # the slot that was never used
    slots.take(1, 60)
    assert slots.surplus() == {0: 0}
    assert slots.num_held == 30


def test_a_slot_holds_no_more_than_its_session_may() -> None:
    slots = Slots(1, TokenLimits(num_tokens=200, num_kept=100))
    slots.release(taken(slots, 60))
    assert slots.take(1, 20) == [0]
    assert slots.surplus() == {0: 20}
    assert slots.longest_prefix(0, list(range(60))) == (0, 20)


def test_without_limits_everything_is_kept() -> None:
    slots = Slots(2)
    slots.release(taken(slots, 60, 70))
    slots.take(2, 10)
    assert slots.surplus() == {}
    assert slots.longest_prefix(0, list(range(99))) == (1, 70)


def test_sessions_wait_in_order_for_tokens() -> None:
    slots = Slots(8, TokenLimits(num_tokens=100, num_kept=0))
    slots.take(1, 90)
    with pytest.raises(NoFreeSlot, match="tokens"):
        slots.take(1, 11)
    long, short = slots.request(2, 50), slots.request(2, 10)
    assert not long.done()
    assert not short.done()  # although there is room for it
    with pytest.raises(NoFreeSlot):
        slots.request(2, 5)
    with pytest.raises(NoFreeSlot):
        slots.take(1, 5)
    slots.release([0])
    assert [long.result(0), short.result(0)] == [1, 2]
    assert slots.num_reserved == 60


def test_who_gives_up_holds_nobody_up() -> None:
    slots = Slots(8, TokenLimits(num_tokens=100, num_kept=0))
    slots.take(1, 90)
    long, short = slots.request(2, 50), slots.request(2, 10)
    long.cancel()
    slots.serve_waiting()
    assert short.result(0) == 1


class Returned:
    """Stands for a cache. Notes after how many passes what is given back; `told` counts it."""

    def __init__(self, engine: RecordingEngine) -> None:
        self.steps: list[tuple[int, int, int]] = []
        self.told = threading.Semaphore(0)
        self._engine = engine

    def __call__(self, slot: int, begin: int) -> Iterator[None]:
        for _ in range(2):
            self.steps.append((slot, begin, len(self._engine.passes)))
            self.told.release()
            yield


@pytest.fixture
def returned(engine: RecordingEngine) -> Returned:
    return Returned(engine)


@pytest.fixture
def scheduler(engine: RecordingEngine, returned: Returned) -> Iterator[Scheduler]:
    limits = TokenLimits(num_kept=0)
    scheduler = Scheduler(engine, 2, BatchLimits(100, 0.0), None, limits, returned)
    yield scheduler
    if engine.gate is not None:
        engine.gate.release(1000)
    scheduler.close()


def test_memory_is_given_back_while_there_is_nothing_to_do(
    scheduler: Scheduler, returned: Returned
) -> None:
    slot = scheduler.acquire(50)
    scheduler.submit(Steps(slot, 40)).result(10)
    scheduler.release(slot)
    for _ in range(2):
        assert returned.told.acquire(timeout=10)
    assert returned.steps == [(slot, 0, 1)] * 2
    assert scheduler.num_held_tokens == 0


def test_memory_is_given_back_before_a_text_is_read(
    engine: RecordingEngine, scheduler: Scheduler, returned: Returned
) -> None:
    ended, other = scheduler.acquire(50), scheduler.acquire(50)
    scheduler.submit(Steps(ended, 40)).result(10)
    engine.gate = threading.Semaphore(0)
    running = scheduler.submit(Steps(other, 10, num_steps=2))
    for _ in range(2):
        assert engine.entered.acquire(timeout=10)
    scheduler.release(ended)
    assert scheduler.acquire(50) == ended  # its next session comes before there is time
    reading = scheduler.submit(Steps(ended, 30))
    engine.gate.release(3)
    running.result(10)
    reading.result(10)
    for _ in range(2):
        assert returned.told.acquire(timeout=10)
    assert returned.steps == [(ended, 30, 3)] * 2  # the rest of the longer text
    assert [chunk.start for chunk in engine.passes[2] if chunk.slot == ended] == [29]
