"""An engine without a model, and a job for it: what the scheduler meets in its tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from outrider.engine.attention.rope import NO_ROPE
from outrider.engine.chunk import Chunk
from outrider.engine.scheduling.batch_limits import BatchLimits
from outrider.engine.scheduling.job import Job
from outrider.engine.scheduling.scheduler import Scheduler


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

    def choose(self, chunks: Sequence[Chunk], *args: Any) -> list[torch.Tensor]:
        """It does not."""
        return self.forward(chunks)

    rope = NO_ROPE

    def clear_unsound(self, chunks: Sequence[Chunk], results: Sequence[Any]) -> list[bool]:
        return [True] * len(chunks)


class Steps(Job):
    """Wants `num_steps` passes after its tokens are read; further settings are a job's own."""

    def __init__(self, slot: int, num_tokens: int, num_steps: int = 1, **settings: Any) -> None:
        super().__init__(slot, 0, range(num_tokens), num_logits=1, **settings)
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
        schedulers.append(Scheduler(engine, num_slots, BatchLimits(token_budget, gather_seconds)))
        return schedulers[-1]

    yield make_scheduler
    if engine.gate is not None:
        engine.gate.release(1000)
    for scheduler in schedulers:
        scheduler.close()
