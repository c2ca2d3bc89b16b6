"""How a model is loaded: on a thread that ends with it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from outrider.loading import in_own_thread


async def test_what_is_loaded_comes_from_a_thread_that_has_ended() -> None:
    thread = await in_own_thread(threading.current_thread)
    thread.join(60)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


async def test_what_fails_there_fails_here() -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        await in_own_thread(fail)


async def test_who_is_cancelled_does_not_wait_for_it() -> None:
    may_end, has_ended = threading.Event(), threading.Event()
    has_begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def load() -> None:
        loop.call_soon_threadsafe(has_begun.set)
        may_end.wait(60)
        has_ended.set()

    loading = asyncio.create_task(in_own_thread(load))
    await has_begun.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert not has_ended.is_set()
    may_end.set()
