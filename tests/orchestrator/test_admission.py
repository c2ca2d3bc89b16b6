from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from orchestrator.admission import Admission, Slot
from orchestrator.forecast import Work
from outrider.errors import DeadlineUnreachable, QueueFull


@pytest.fixture
async def running() -> AsyncIterator[AsyncExitStack]:
    """Slots that are held until it is closed."""
    async with AsyncExitStack() as stack:
        yield stack


def work(num_tokens: int = 10, may_end: bool = False) -> Work:
    return Work(0, num_tokens, may_end)


def admission_of(num_slots: int, seconds_per_token: float = 0.0, **limits: float) -> Admission:
    """One that takes tokens to need so long, alone or not."""
    admission = Admission(num_slots, **limits)  # type: ignore[arg-type]
    if seconds_per_token:
        admission.forecast.saw_tokens(num_slots, seconds_per_token, 1)
    return admission


async def hold(running: AsyncExitStack, admission: Admission, num_tokens: int = 10) -> Slot:
    return await running.enter_async_context(admission.slot(work(num_tokens), None))


async def wait(admission: Admission, name: str, started: list[str]) -> None:
    async with admission.slot(work(), None):
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


async def enter(admission: Admission, num_tokens: int, seconds_left: float | None = None) -> None:
    async with admission.slot(work(num_tokens), seconds_left):
        pass


async def test_slots_are_given_in_the_order_of_arrival(running: AsyncExitStack) -> None:
    admission, started = Admission(1), list[str]()
    await hold(running, admission)
    tasks = []
    for count, name in enumerate("abc", 1):
        tasks.append(asyncio.create_task(wait(admission, name, started)))
        await queued(admission, count)
    await running.aclose()
    late = asyncio.create_task(wait(admission, "d", started))  # none runs, but some wait
    await asyncio.gather(*tasks, late)
    assert started == ["a", "b", "c", "d"]
    assert (admission.num_running, admission.num_queued) == (0, 0)


async def test_slots_follow_a_target_that_was_restarted(running: AsyncExitStack) -> None:
    admission = admission_of(1, 1.0, max_queue_seconds=1000)
    await hold(running, admission)
    tasks = await queue(admission, 3)
    admission.resize(3)
    await queued(admission, 0)  # who waited gets the new ones
    await asyncio.gather(*tasks)
    slots = [await running.enter_async_context(admission.slot(work(), None)) for _ in range(2)]
    admission.resize(1)
    assert admission.num_running == 3
    slots[1].num_tokens = 5
    assert admission.seconds_to_wait == pytest.approx(10)  # the last of the three, not the first
    tasks = await queue(admission, 2)
    await running.aclose()
    await asyncio.gather(*tasks)
    assert (admission.num_running, admission.num_queued) == (0, 0)


async def test_a_full_queue_refuses_and_says_when_to_come_back(running: AsyncExitStack) -> None:
    admission = admission_of(1, 0.5, max_queued=2, max_queue_seconds=1000)
    slot = await hold(running, admission, 20)
    tasks = await queue(admission, 2)
    slot.num_tokens = 15
    with pytest.raises(QueueFull) as caught:
        await enter(admission, 10)
    assert caught.value.retry_after == pytest.approx((5 + 2 * 10) * 0.5 / 2)
    assert (admission.num_queued, admission.num_refused) == (2, 1)
    await running.aclose()
    await asyncio.gather(*tasks)


async def test_a_wait_is_that_for_the_first_slot_that_will_be_free(running: AsyncExitStack) -> None:
    admission = admission_of(2, 1.0, max_queue_seconds=1000)
    slots = [await hold(running, admission, num_tokens) for num_tokens in (30, 100)]
    assert admission.seconds_to_wait == pytest.approx(30)
    slots[0].num_tokens = 20
    assert admission.seconds_to_wait == pytest.approx(10)
    tasks = await queue(admission, 3)
    assert admission.seconds_to_wait == pytest.approx(10 + 3 * 10)
    await running.aclose()
    await asyncio.gather(*tasks)
    assert admission.seconds_to_wait == 0


async def test_a_request_that_would_wait_for_too_long_is_refused_at_once(
    running: AsyncExitStack,
) -> None:
    admission = admission_of(1, 1.0, max_queue_seconds=40)
    await hold(running, admission, 20)
    tasks = await queue(admission, 2)  # the first expects to wait 20 s, the second 30
    with pytest.raises(QueueFull) as caught:
        await enter(admission, 1)
    assert caught.value.retry_after == pytest.approx(20)
    assert (admission.num_queued, admission.num_refused) == (2, 1)
    await running.aclose()
    await asyncio.gather(*tasks)


async def test_a_request_that_waits_for_longer_than_it_may_is_refused_then(
    running: AsyncExitStack,
) -> None:
    admission = admission_of(1, 1e-6, max_queue_seconds=0.02)
    await hold(running, admission)  # and goes on and on
    with pytest.raises(QueueFull):
        async with asyncio.timeout(10), admission.slot(work(), 60.0):
            pass
    assert (admission.num_queued, admission.num_refused, admission.num_unreachable) == (0, 1, 0)
    await running.aclose()
    await enter(admission, 1)


async def test_a_request_that_gives_up_waiting_makes_room(running: AsyncExitStack) -> None:
    admission = admission_of(1, 1e-3, max_queued=1)
    await hold(running, admission)
    [task] = await queue(admission, 1)
    task.cancel()
    await asyncio.wait([task])
    admission.check_queue()
    [task] = await queue(admission, 1)
    await running.aclose()
    await task
    assert admission.retry_seconds == 0.1  # nothing is left of either


async def test_a_deadline_that_the_queue_exceeds_is_refused_at_once(
    running: AsyncExitStack,
) -> None:
    admission = admission_of(2, 1.0, max_queue_seconds=1000)
    for _ in range(2):
        await hold(running, admission, 20)
    with pytest.raises(DeadlineUnreachable) as caught:  # 20 s to wait, 10 s to work
        await enter(admission, 10, 29.0)
    assert caught.value.retry_after is not None
    assert (admission.num_queued, admission.num_unreachable) == (0, 1)
    [task] = await queue(admission, 1)
    await running.aclose()
    await task


async def test_a_deadline_that_a_free_slot_does_not_help_is_refused_at_once() -> None:
    admission = admission_of(1, 0.03)
    with pytest.raises(DeadlineUnreachable) as caught:
        await enter(admission, 512, 1.5)
    assert caught.value.retry_after is None  # it will be no better then
    await enter(admission, 512, 16.0)
    await enter(admission, 512)
    assert (admission.num_running, admission.num_unreachable) == (0, 1)


async def test_texts_that_end_early_are_let_in_by_their_real_lengths() -> None:
    admission = admission_of(1, 0.03)
    for _ in range(3):
        async with admission.slot(work(512, may_end=True), None) as slot:
            slot.num_tokens = 20
    async with admission.slot(work(512, may_end=True), 1.5):
        pass
    with pytest.raises(DeadlineUnreachable):
        await enter(admission, 512, 1.5)


async def test_an_idle_server_puts_a_wrong_guess_to_the_test() -> None:
    """Else one guess that was too high would refuse requests with deadlines for ever."""
    admission = admission_of(1, 1e6)
    for attempt in range(1, 100):
        try:
            async with admission.slot(work(10), 5.0) as slot:
                slot.advance(1, 1e-6)
                slot.advance(10, 1e-5)
            break
        except DeadlineUnreachable:
            assert admission.num_unreachable == attempt
    assert admission.num_unreachable == 7
    for _ in range(20):
        await enter(admission, 10, 5.0)


async def test_what_is_let_in_to_see_does_not_open_the_door_where_the_guess_was_right() -> None:
    admission = admission_of(1, 1e6)
    num_let_in = 0
    for _ in range(80):
        try:
            async with admission.slot(work(10), 5.0) as slot:
                num_let_in += 1
                slot.num_tokens = 1
                admission.forecast.saw_tokens(1, 1e6, 1)
                raise TimeoutError
        except (DeadlineUnreachable, TimeoutError):
            pass
    assert num_let_in == 10


async def test_a_request_that_waited_too_long_leaves_the_slot_to_the_next(
    running: AsyncExitStack,
) -> None:
    admission, started = Admission(1), list[str]()
    await hold(running, admission)

    async def hurry() -> None:
        async with admission.slot(work(), 5.0):
            started.append("hurried")

    hurried = asyncio.create_task(hurry())
    patient = asyncio.create_task(wait(admission, "patient", started))
    await queued(admission, 2)
    admission.forecast.saw_tokens(1, 100.0, 1)  # what the one that runs turns out to take
    await running.aclose()
    with pytest.raises(DeadlineUnreachable):
        await hurried
    await patient
    assert started == ["patient"]


async def test_a_request_that_can_no_longer_be_done_in_time_does_not_wait_for_a_turn(
    running: AsyncExitStack,
) -> None:
    admission = admission_of(1, 0.001)
    await hold(running, admission, 1)  # and goes on and on
    with pytest.raises(DeadlineUnreachable):
        async with asyncio.timeout(10), admission.slot(work(1), 0.03):
            pass
    assert (admission.num_queued, admission.num_unreachable) == (0, 1)
    [task] = await queue(admission, 1)  # the place is free, and the slot comes to the next
    await running.aclose()
    await task
    assert admission.num_running == 0


async def test_requests_that_fail_teach_how_long_tokens_take() -> None:
    admission = Admission(1)
    with pytest.raises(TimeoutError):
        async with admission.slot(work(), None) as slot:
            slot.advance(1, 0.1)
            slot.advance(2, 0.1)
            raise TimeoutError
    assert admission.forecast.seconds(work(), 1) > 0
