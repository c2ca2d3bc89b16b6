"""The target as a writer of texts to learn from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import AutoTokenizer

from outrider.distill.writing import Writer
from outrider.engine.model import Engine, EngineOptions
from outrider.engine.scheduler import Scheduler


def test_texts_wait_for_the_slots_of_those_before(tiny_models: Callable[..., Path]) -> None:
    """A slot is not free yet when its last token is known, but when the pass has ended."""
    folder = tiny_models("llama")
    engine = Engine(EngineOptions(str(folder), "cpu", "float32", 1, 1, 64))
    scheduler = Scheduler(engine, engine.cache.num_slots)
    writer = Writer(engine, scheduler, AutoTokenizer.from_pretrained(folder), 64)
    taken = scheduler.acquire()
    try:
        with ThreadPoolExecutor(1) as executor:
            shard = executor.submit(writer.shard, 0, ["the cat", "a dog"])
            while not scheduler.num_waiting:
                assert not shard.done(), shard.result()
            scheduler.release(taken)
            assert len(shard.result(60)) == 2
    finally:
        scheduler.close()
