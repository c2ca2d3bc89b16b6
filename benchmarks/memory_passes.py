"""Passes over memory that the KV cache takes as it is written.

    python -m benchmarks.memory_passes [--rounds 12]

Times of the default target's passes, relative to those over a cache that was written to before, in
turn, with one thread: prompts and steps into new memory, and steps after a text.
"""

import argparse
import statistics
from collections import deque
from collections.abc import Sequence

from benchmarks.support.timing import timed_ms
from outrider.embedded import resolve_model
from outrider.engine.chunk import Chunk
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider_bench.output.results_file import write_result

TEXT_LENGTH = 2_000
PLACES = (100, 1_000, 1_990)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    engine = Engine(EngineOptions(resolve_model("default"), threads=1, slots=1))
    new, old = engine.cache, engine.cache.resized(1, engine.max_context_length)
    old.clear(0, 0, engine.max_context_length)

    def run(chunks: Sequence[Chunk]) -> float:
        return sum(timed_ms(lambda: engine.forward([chunk])) for chunk in chunks)  # noqa: B023

    def ratio(chunks: Sequence[Chunk], rounds: int, is_new: bool) -> float:
        ratios = []
        for number in range(rounds):
            ms = {}
            for cache in (new, old) if number % 2 else (old, new):
                if is_new:
                    deque(new.give_back(0), maxlen=0)
                engine.cache = cache
                ms[cache] = run(chunks)
            ratios.append(ms[new] / ms[old])
        return round(statistics.median(ratios), 3)

    ratios = {
        "a prompt of 512 tokens": ratio(prompt(512), args.rounds, is_new=True),
        "the first 64 steps": ratio([step(place) for place in range(64)], args.rounds, is_new=True),
    }
    for engine.cache in (new, old):
        run(prompt(TEXT_LENGTH))
    for place in PLACES:
        ratios[f"a step after {place} tokens"] = ratio([step(place)], 5 * args.rounds, is_new=False)
    print(ratios)
    print(write_result("memory_passes", vars(args), ratios=ratios))


def prompt(length: int) -> list[Chunk]:
    """In parts of 256 tokens."""
    starts = range(0, length, 256)
    return [Chunk(0, start, range(10, 10 + min(256, length - start)), 1) for start in starts]


def step(place: int) -> Chunk:
    return Chunk(0, place, [5], 1)


if __name__ == "__main__":
    main()
