"""Who gets a semaphore whose size changes."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.resizable_semaphore import ResizableSemaphore


async def acquiring(semaphore: ResizableSemaphore, count: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(semaphore.acquire()) for _ in range(count)]
    await settled()
    return tasks


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_it_is_handed_over_in_the_order_of_arrival() -> None:
    semaphore = ResizableSemaphore(2)
    tasks = await acquiring(semaphore, 4)
    assert [task.done() for task in tasks] == [True, True, False, False]
    semaphore.release()
    await settled()
    assert [task.done() for task in tasks] == [True, True, True, False]
    semaphore.resize(3)
    await settled()
    assert all(task.done() for task in tasks)
    assert semaphore.locked()


async def test_where_it_shrinks_none_gets_it_before_enough_are_released() -> None:
    semaphore = ResizableSemaphore(3)
    await acquiring(semaphore, 3)
    semaphore.resize(1)
    [waiting] = await acquiring(semaphore, 1)
    for _ in range(2):
        semaphore.release()
        await settled()
        assert not waiting.done()
    semaphore.release()
    await waiting


async def test_one_that_is_cancelled_while_it_is_handed_over_holds_nothing() -> None:
    semaphore = ResizableSemaphore(1)
    first, second, third = await acquiring(semaphore, 3)
    await first
    second.cancel()
    semaphore.release()
    await settled()
    assert second.cancelled()
    assert third.done()
    [fourth] = await acquiring(semaphore, 1)
    semaphore.release()  # handed over to it
    fourth.cancel()  # in the same moment
    with pytest.raises(asyncio.CancelledError):
        await fourth
    assert not semaphore.locked()
