"""An engine's thread that ends, fails for ever, or hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from outrider.engine.scheduling.scheduler import Scheduler
from outrider.engine.scheduling.supervisor import MAX_FAILED_PASSES, MAX_IDLE_LOOKS, Supervisor
from outrider.engine.scheduling.threads import AdaptiveThreads
from outrider.errors import EngineFailed
from tests.support.recording_engine import RecordingEngine, Steps, engine, make

__all__ = ["engine", "make"]  # fixtures


def test_an_exception_outside_a_pass_fails_all_jobs(
    engine: RecordingEngine, make: Callable[..., Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = make()
    engine.gate = threading.Semaphore(0)
    running = scheduler.submit(Steps(scheduler.acquire(), 1))
    engine.entered.acquire(timeout=10)

    def break_down(*args: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(scheduler, "_pack", break_down)
    waiting = [scheduler.submit(Steps(scheduler.acquire(), 1)) for _ in range(2)]
    engine.gate.release(10)
    running.result(10)
    for future in waiting:
        with pytest.raises(EngineFailed):
            future.result(10)
    with pytest.raises(EngineFailed):
        scheduler.submit(Steps(0, 1))
    with pytest.raises(EngineFailed):
        scheduler.check()


def test_an_end_of_the_thread_in_a_pass_fails_its_jobs(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make()
    engine.failure = SystemExit("from a library")  # type: ignore[assignment]
    with pytest.raises(EngineFailed):
        scheduler.submit(Steps(scheduler.acquire(), 1)).result(10)
    with pytest.raises(EngineFailed):
        scheduler.check()


def test_passes_that_fail_for_ever_end_the_engine(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make()
    slot = scheduler.acquire()

    def fail(times: int) -> None:
        engine.failure = RuntimeError("no device")
        for _ in range(times):
            with pytest.raises(RuntimeError, match="no device"):
                scheduler.submit(Steps(slot, 1)).result(10)
        engine.failure = None

    fail(MAX_FAILED_PASSES - 1)
    scheduler.submit(Steps(slot, 1)).result(10)  # it works again, and the count begins anew
    fail(MAX_FAILED_PASSES - 1)
    scheduler.check()
    fail(1)
    scheduler._thread.join(10)
    with pytest.raises(EngineFailed, match="in a row have failed"):
        scheduler.check()


def test_an_engine_that_hangs_is_noticed_and_can_be_closed(
    engine: RecordingEngine, make: Callable[..., Scheduler]
) -> None:
    engine.gate = threading.Semaphore(0)
    scheduler = make()
    scheduler.submit(Steps(scheduler.acquire(), 1))
    engine.entered.acquire(timeout=10)
    for _ in range(MAX_IDLE_LOOKS - 1):
        scheduler.check()
    with pytest.raises(EngineFailed, match="no forward pass"):
        scheduler.check()
    scheduler.close()  # does not wait for the pass


def test_a_text_that_waits_for_another_number_of_threads_is_no_work(
    engine: RecordingEngine,
) -> None:
    class HoldsUp(AdaptiveThreads):
        holds_up = True  # type: ignore[assignment]

    scheduler = Scheduler(engine, 2, threads=HoldsUp({torch.get_num_threads(): 0.0}))
    try:
        running, waiting = scheduler.acquire_all(2)
        scheduler.submit(Steps(running, 1)).result(10)  # its session stays open
        with scheduler._changed:
            assert scheduler._changed.wait_for(lambda: not scheduler.num_jobs, 10)
        job = scheduler.submit(Steps(waiting, 1))
        for _ in range(2 * MAX_IDLE_LOOKS):
            scheduler.check()
        scheduler.release(running)
        job.result(10)
    finally:
        scheduler.close()


def test_an_idle_or_slow_engine_is_none_that_hangs() -> None:
    supervisor = Supervisor()
    for _ in range(2 * MAX_IDLE_LOOKS):
        supervisor.look(is_busy=False)
    for _ in range(3):
        for _ in range(MAX_IDLE_LOOKS - 1):
            supervisor.look(is_busy=True)
        supervisor.end_pass(failed=False)
        supervisor.look(is_busy=True)
