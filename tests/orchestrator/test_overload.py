"""Admission under three times the load that fits, in simulated time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from orchestrator.admission import Admission
from orchestrator.forecast import Work
from outrider.errors import DeadlineUnreachable, QueueFull

NUM_SLOTS = 16
SECONDS = 40

T = TypeVar("T")


class SimulatedTime(asyncio.SelectorEventLoop):
    """Whenever nothing is left to do, it is as late as the next thing that is due."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


@dataclass
class Service:
    """Requests of some tokens, whose passes take the longer the more of them run."""

    admission: Admission
    may_end: bool  # texts of at most 64 tokens and 16 on average, else of 16
    deadline: float | None = None
    ended: list[tuple[float, float]] = field(default_factory=list)  # when, and after what time
    refused: list[float] = field(default_factory=list)  # after what time

    def __post_init__(self) -> None:
        self.random = random.Random(0)

    async def request(self) -> None:
        time = asyncio.get_running_loop().time
        began = time()
        length = min(64, 1 + int(self.random.expovariate(1 / 16))) if self.may_end else 16
        work = Work(50, 64 if self.may_end else 16, self.may_end)
        try:
            async with self.admission.slot(work, self.deadline) as slot:
                seconds = await self._pass(0.2)
                for num_tokens in range(1, length + 1):
                    slot.advance(num_tokens, seconds)
                    if num_tokens < length:
                        seconds = await self._pass(0.02 + 0.007 * self.admission.num_running)
        except (QueueFull, DeadlineUnreachable):
            self.refused.append(time() - began)
        else:
            self.ended.append((time(), time() - began))

    async def _pass(self, seconds: float) -> float:
        seconds *= self.random.uniform(0.8, 1.2)
        await asyncio.sleep(seconds)
        return seconds

    async def closed_loop(self) -> None:
        """Sixteen clients that wait for their answers."""

        async def client() -> None:
            time = asyncio.get_running_loop().time
            until = time() + SECONDS
            while time() < until:
                await self.request()

        await asyncio.gather(*(client() for _ in range(NUM_SLOTS)))

    async def open_loop(self, rate: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(int(rate * SECONDS)):
                tasks.create_task(self.request())
                await asyncio.sleep(1 / rate)

    def answered_per_second(self) -> float:
        """Behind the first five seconds, and until requests were no longer sent."""
        return sum(5 <= when < SECONDS for when, _ in self.ended) / (SECONDS - 5)


def simulated(monkeypatch: pytest.MonkeyPatch, main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=SimulatedTime) as runner:
        monkeypatch.setattr("orchestrator.admission.time.monotonic", runner.get_loop().time)
        return runner.run(main)


@pytest.mark.parametrize("may_end", [False, True])
def test_what_is_let_in_is_answered_in_time_and_nothing_is_wasted(
    may_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = Service(Admission(NUM_SLOTS), may_end)
    simulated(monkeypatch, closed.closed_loop())
    assert not closed.refused
    capacity = closed.answered_per_second()
    assert capacity > 5

    bound = 10.0
    over = Service(Admission(NUM_SLOTS, max_queue_seconds=bound), may_end, deadline=60.0)
    simulated(monkeypatch, over.open_loop(3 * capacity))
    assert over.answered_per_second() >= 0.95 * capacity
    alone = max(seconds for _, seconds in closed.ended)
    assert max(seconds for _, seconds in over.ended) <= bound + alone
    # Refused when they came, but for a few of which too much was expected.
    assert len(over.refused) > len(over.ended)
    assert sum(seconds > 0 for seconds in over.refused) <= 0.02 * len(over.refused)
    assert max(over.refused) <= bound
