from __future__ import annotations

import os
import sys
import threading

import pytest

from outrider.engine.scheduling.batch_limits import BatchLimits
from outrider.engine.scheduling.priority import give_way
from outrider.engine.scheduling.scheduler import Scheduler
from tests.support.recording_engine import RecordingEngine, Steps

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has them by thread")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_a_thread_and_those_it_starts_give_way() -> None:
    found: list[int] = []

    def work() -> None:
        give_way()
        found.append(niceness())
        thread = threading.Thread(target=lambda: found.append(niceness()))
        thread.start()
        thread.join()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [min(19, niceness() + 5)] * 2


def test_models_run_behind_whoever_answers_requests() -> None:
    class Engine(RecordingEngine):
        def forward(self, chunks):  # type: ignore[no-untyped-def]
            self.niceness = niceness()
            return super().forward(chunks)

    engine = Engine()
    scheduler = Scheduler(engine, 1, BatchLimits())
    scheduler.submit(Steps(scheduler.acquire(), 3)).result(timeout=10)
    scheduler.close()
    assert engine.niceness == min(19, niceness() + 5)
