"""Whole passes are compared as the scheduler forms them, and cut where their bits differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.engine.chunk import Chunk
from outrider.engine.cpu.pass_comparison import compare_passes
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.engine.scheduling.batch_limits import BatchLimits
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.engine.shapes import num_threads, same_bits
from outrider.protocol.messages import BatchInvariance
from tests.support.claims import needs_invariant
from tests.support.recording_engine import RecordingEngine, Steps

ALL = BatchInvariance(True, across_threads=True)
NO_LIMIT, WIDEST = 10**9, 700


class StandIn:
    """An engine whose bits depend on how wide the passes were that read a slot, and on threads."""

    vocab_size, max_context_length = 50, 400
    thread_counts = (2, 1)

    def __init__(
        self, limit: int, fewest: int = 1, by_threads: bool = False, most_in_front: int = 10**9
    ) -> None:
        self.limit, self.fewest, self.by_threads = limit, fewest, by_threads
        self.most_in_front = most_in_front
        self.cache: Any = type("Cache", (), {"num_slots": 4})
        self.slots: dict[int, list[float]] = {}

    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        width = sum(len(chunk.token_ids) for chunk in chunks)
        error = float(width > self.limit or width < self.fewest)
        if self.by_threads:
            error += torch.get_num_threads()
        logits, num_in_front = [], 0
        for chunk in chunks:
            if num_in_front > self.most_in_front:
                error += 1
            num_in_front += len(chunk.token_ids)
            known = self.slots.setdefault(chunk.slot, [])
            known[chunk.start :] = [token_id + error / 8 for token_id in chunk.token_ids]
            sums = torch.tensor(known).cumsum(0)[chunk.end - chunk.num_logits :, None]
            logits.append(sums)
        return logits


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (NO_LIMIT, ALL),
        (WIDEST, ALL),
        (600, BatchInvariance(True, 512, across_threads=True)),
        (65, BatchInvariance(True, 65, across_threads=True)),
        (64, BatchInvariance(False)),  # a verification of 64 draft tokens does not fit
    ],
)
def test_the_widest_pass_that_keeps_its_bits_is_found(
    limit: int, expected: BatchInvariance
) -> None:
    engine: Any = StandIn(limit)
    assert compare_passes(engine, ALL, WIDEST) == expected


def test_steps_that_differ_from_verifications_end_the_claim() -> None:
    engine: Any = StandIn(NO_LIMIT, fewest=2)
    assert compare_passes(engine, ALL, WIDEST) == BatchInvariance(False)


def test_the_last_rows_of_a_pass_are_compared_too() -> None:
    engine: Any = StandIn(NO_LIMIT, most_in_front=300)
    assert compare_passes(engine, ALL, WIDEST) == BatchInvariance(True, 256, across_threads=True)


def test_numbers_of_threads_are_compared() -> None:
    engine: Any = StandIn(NO_LIMIT, by_threads=True)
    assert compare_passes(engine, ALL, WIDEST) == BatchInvariance(True)


def test_what_kernels_have_shown_is_not_taken_back() -> None:
    engine: Any = StandIn(NO_LIMIT)
    for claim in (BatchInvariance(False), BatchInvariance(True)):
        assert compare_passes(engine, claim, WIDEST) == claim


def test_no_pass_exceeds_the_limit() -> None:
    engine = RecordingEngine()
    scheduler = Scheduler(engine, 2, BatchLimits(token_budget=256, max_tokens=100))
    try:
        jobs = [Steps(scheduler.acquire(), 450) for _ in range(2)]
        for future in [scheduler.submit(job) for job in jobs]:
            future.result(timeout=10)
    finally:
        scheduler.close()
    widths = [sum(len(chunk.token_ids) for chunk in chunks) for chunks in engine.passes]
    assert max(widths) == 100


def test_a_claim_says_what_it_covers() -> None:
    assert [str(BatchInvariance(*claim)) for claim in ((True,), (True, 65), (False,))] == [
        "yes",
        "in passes of up to 65 tokens",
        "no",
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_are_the_same_with_every_number_of_threads_that_is_claimed(
    dtype: str, tiny_models: Callable[..., Path]
) -> None:
    folder = str(tiny_models("llama"))
    engine = Engine(EngineOptions(folder, "cpu", dtype, threads=2, slots=1, adapt_threads=True))
    try:
        needs_invariant(engine)
        assert engine.thread_counts == (2, 1)
        logits = []
        for count in engine.thread_counts:
            with num_threads(count):
                logits.append(engine.forward([Chunk(0, 0, list(range(5, 85)), 80)])[0])
        assert engine.batch_invariance is not None
        assert not engine.batch_invariance.across_threads or same_bits(*logits)
    finally:
        torch.set_num_threads(1)
