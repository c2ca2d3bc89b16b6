"""Jobs whose tokens the engine chooses by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from outrider.engine.chunk import Capture, Chunk
from outrider.engine.scheduling.batch_limits import BatchLimits
from outrider.engine.scheduling.job import Job
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.protocol.messages import GREEDY
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice
from tests.support.recording_engine import RecordingEngine, Steps, make

__all__ = ["make"]

LAST = 99


class SpecEngine(RecordingEngine):
    """Chooses 90, 91, 92, ... after whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps: list[int] = []

    def choose(  # type: ignore[override]
        self, chunks: Sequence[Chunk], specs: Sequence[SamplingSpec], num_steps: int
    ) -> list[list[list[Choice]]]:
        self.forward(chunks)
        self.num_steps.append(num_steps)
        return [[[Choice(90 + step, 1.0)] for step in range(num_steps)] for _ in chunks]


class Taking(Job):
    """Takes tokens until `last`, so many at once."""

    spec = SamplingSpec(GREEDY, num_ids=100)

    def __init__(self, slot: int, token_ids: Sequence[int], at_once: int, last: int) -> None:
        super().__init__(slot, 0, token_ids, num_logits=1)
        self.taken: list[int] = []
        self._at_once, self._last = at_once, last

    @property
    def num_at_once(self) -> int:
        return self._at_once

    def take(self, choices: Sequence[Choice]) -> list[int]:
        self.taken.append(choices[0].token_id)
        return [] if self.taken[-1] == self._last else self.taken[-1:]


@pytest.fixture
def engine() -> SpecEngine:
    return SpecEngine()


def test_what_was_chosen_and_read_is_in_the_slot(
    engine: SpecEngine, make: Callable[..., Scheduler]
) -> None:
    """All but the last one that was wanted; what the engine read behind it does not count."""
    scheduler = make(token_budget=40)
    job = Taking(scheduler.acquire(), range(20), at_once=8, last=93)
    scheduler.submit(job).result(10)
    assert (engine.num_steps, job.taken, job.start) == ([8], [90, 91, 92, 93], 23)
    scheduler.release(job.slot)
    same = Steps(scheduler.acquire(), 1)
    same.token_ids = [*range(20), 90, 91, 92, 93, 94]
    scheduler.submit(same).result(10)
    assert engine.passes[-1][0].start == 23


def test_a_pass_goes_on_from_what_was_chosen(
    engine: SpecEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(token_budget=40)
    job = Taking(scheduler.acquire(), range(20), at_once=3, last=LAST)
    scheduler.submit(job)
    while len(engine.passes) < 3:
        assert engine.entered.acquire(timeout=10)
    scheduler.release(job.slot)
    starts = [(chunk.start, list(chunk.token_ids)) for [chunk] in engine.passes[1:3]]
    assert starts == [(22, [92]), (25, [92])]


def test_who_wants_the_fewest_at_once_gets_them(
    engine: SpecEngine, make: Callable[..., Scheduler]
) -> None:
    scheduler = make(token_budget=40)
    first, second = (
        Taking(scheduler.acquire(), range(4), at_once, last) for at_once, last in ((8, 91), (2, 91))
    )
    with scheduler._changed:  # the engine sees both at once
        futures = [scheduler.submit(first), scheduler.submit(second)]
    for future in futures:
        future.result(10)
    assert engine.num_steps == [2]
    assert first.taken == second.taken == [90, 91]


def test_a_job_that_chooses_itself_gets_logits_for_all(
    engine: SpecEngine, make: Callable[..., Scheduler]
) -> None:
    class Both(Taking):
        def advance(self, logits: torch.Tensor) -> list[int]:
            assert logits.shape == (1, 4)
            return []

    scheduler = make(token_budget=40)
    with scheduler._changed:
        futures = [
            scheduler.submit(Both(scheduler.acquire(), range(4), at_once=8, last=LAST)),
            scheduler.submit(Steps(scheduler.acquire(), 3)),
        ]
    for future in futures:
        future.result(10)
    assert engine.num_steps == []


class GivingEngine(RecordingEngine):
    """Gives each token's index as its hidden state, once for each layer."""

    def forward(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        for chunk in chunks:
            assert chunk.capture is not None
            indices = torch.arange(chunk.start, chunk.end)[:, None]
            chunk.capture.rows = indices.repeat(1, len(chunk.capture.layers))
        return super().forward(chunks)


class Capturing(Steps):
    """Takes its hidden states after every pass with logits."""

    capture = Capture((3, 5))

    def advance(self, logits: torch.Tensor) -> list[int]:
        taken = self.take_hidden_states()
        assert taken is not None
        first, bits = taken
        rows = torch.from_numpy(bits).view(torch.bfloat16)
        assert rows.shape[1] == 2
        self.taken: list[list[int]] = [*getattr(self, "taken", []), [first, *rows[:, 0].tolist()]]
        assert self.take_hidden_states() is None
        return super().advance(logits)


def test_hidden_states_come_for_all_tokens_that_a_job_reads() -> None:
    engine = GivingEngine()
    scheduler = Scheduler(engine, 2, BatchLimits(2, 0.0))
    job = Capturing(0, 5, num_steps=3)
    try:
        scheduler.submit(job).result(10)
    finally:
        scheduler.close()
    assert len(engine.passes) == 4  # the prompt took two
    assert job.taken == [[0, 0, 1, 2, 3, 4], [5, 5], [6, 6]]


def test_hidden_states_of_tokens_that_are_read_again_come_once() -> None:
    job = Capturing(0, 5)

    def read(num_tokens: int, is_sound: bool) -> None:
        chunk = job.next_chunk(num_tokens)
        GivingEngine().forward([chunk])
        job.finish_pass(chunk, torch.zeros(chunk.num_logits, 4), is_sound, 0)

    job.drop_guesses = lambda: True  # type: ignore[method-assign]
    read(2, is_sound=True)
    read(2, is_sound=False)
    read(2, is_sound=True)
    read(1, is_sound=True)
    assert job.taken == [[0, 0, 1, 2, 3, 4]]
