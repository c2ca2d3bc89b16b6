from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from orchestrator.admission import Admission
from outrider.errors import DeadlineUnreachable, QueueFull


@pytest.fixture
async def running() -> AsyncIterator[AsyncExitStack]:
    """Slots that are held until it is closed."""
    async with AsyncExitStack() as stack:
        yield stack


async def wait(admission: Admission, name: str, started: list[str], tokens: int = 10) -> None:
    async with admission.slot(tokens, None):
        started.append(name)


async def queued(admission: Admission, count: int) -> None:
    """Lets others run until so many requests wait."""
    for _ in range(100):
        if admission.num_queued == count:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{admission.num_queued} wait, not {count}")


async def queue(admission: Admission, count: int) -> list[asyncio.Task[None]]:
    """Tasks that wait for a slot."""
    tasks = [asyncio.create_task(wait(admission, "", [])) for _ in range(count)]
    await queued(admission, count)
    return tasks


async def test_slots_are_given_in_the_order_of_arrival(running: AsyncExitStack) -> None:
    admission, started = Admission(1), list[str]()
    await running.enter_async_context(admission.slot(10, None))
    tasks = []
    for count, name in enumerate("abc", 1):
        tasks.append(asyncio.create_task(wait(admission, name, started)))
        await queued(admission, count)
    await running.aclose()
    late = asyncio.create_task(wait(admission, "d", started))  # while nobody runs, but some wait
    await asyncio.gather(*tasks, late)
    assert started == ["a", "b", "c", "d"]
    assert (admission.num_running, admission.num_queued) == (0, 0)


async def test_a_full_queue_refuses_and_says_when_to_come_back(running: AsyncExitStack) -> None:
    admission = Admission(1, max_queued=2)
    admission.seconds_per_token = 0.5
    await running.enter_async_context(admission.slot(20, None))
    tasks = await queue(admission, 2)
    with pytest.raises(QueueFull) as caught:
        async with admission.slot(10, None):
            pass
    assert caught.value.retry_after == (20 / 2 + 2 * 10) * 0.5 / 2
    assert (admission.num_queued, admission.num_refused) == (2, 1)
    await running.aclose()
    await asyncio.gather(*tasks)


async def test_who_gives_up_waiting_makes_room(running: AsyncExitStack) -> None:
    admission = Admission(1, max_queued=1)
    await running.enter_async_context(admission.slot(10, None))
    [task] = await queue(admission, 1)
    task.cancel()
    await asyncio.wait([task])
    admission.check_queue()
    [task] = await queue(admission, 1)
    await running.aclose()
    await task
    admission.seconds_per_token = 1.0
    assert admission.retry_seconds == 0.1  # nothing is left of either


async def test_a_deadline_that_the_queue_exceeds_is_refused_at_once(
    running: AsyncExitStack,
) -> None:
    admission = Admission(2)
    admission.seconds_per_token = 1.0
    for _ in range(2):
        await running.enter_async_context(admission.slot(40, None))
    with pytest.raises(DeadlineUnreachable):  # 20 s to wait, 10 s to work
        async with admission.slot(10, 29.0):
            pass
    assert (admission.num_queued, admission.num_unreachable) == (0, 1)
    task = asyncio.create_task(wait(admission, "", []))
    await queued(admission, 1)
    await running.aclose()
    await task


async def test_a_free_slot_is_given_whatever_was_learned() -> None:
    """Else one guess that was too high would refuse everybody for ever."""
    admission = Admission(1)
    admission.seconds_per_token = 1e6
    async with admission.slot(10, 0.5):
        pass
    assert admission.seconds_per_token < 1e6


async def test_who_waited_too_long_leaves_the_slot_to_the_next(running: AsyncExitStack) -> None:
    admission, started = Admission(1), list[str]()
    await running.enter_async_context(admission.slot(10, None))

    async def hurry() -> None:
        async with admission.slot(10, 5.0):
            started.append("hurried")

    hurried = asyncio.create_task(hurry())
    patient = asyncio.create_task(wait(admission, "patient", started))
    await queued(admission, 2)
    admission.seconds_per_token = 100.0  # what the one that runs turns out to take
    await running.aclose()
    with pytest.raises(DeadlineUnreachable):
        await hurried
    await patient
    assert started == ["patient"]


async def test_who_can_no_longer_be_done_in_time_does_not_wait_for_a_turn(
    running: AsyncExitStack,
) -> None:
    admission = Admission(1)
    admission.seconds_per_token = 0.01
    await running.enter_async_context(admission.slot(1, None))  # and goes on and on
    with pytest.raises(DeadlineUnreachable):
        async with asyncio.timeout(10), admission.slot(1, 0.03):
            pass
    assert (admission.num_queued, admission.num_unreachable) == (0, 1)
    [task] = await queue(admission, 1)  # the place is free, and the slot comes to who is next
    await running.aclose()
    await task
    assert admission.num_running == 0


async def test_requests_that_are_given_up_teach_that_it_takes_longer() -> None:
    admission = Admission(1)
    with pytest.raises(TimeoutError):
        async with admission.slot(1, None):
            raise TimeoutError
    assert admission.seconds_per_token > 0
    admission.seconds_per_token = 50.0
    with pytest.raises(TimeoutError):
        async with admission.slot(1, None):
            raise TimeoutError
    assert admission.seconds_per_token == 50.0
