"""The speed that a target loses to a draft on another core of the same machine.

    python -m benchmarks.shared_memory [--rounds 5]

The time of a short pass is that of reading the weights. Two hosts have two memories; two cores
of one machine share one. Median ms of a pass of one token of the default target on the first
core, alternately while the default draft runs steps over 1 or 4 predrafts on the second, and
while it is idle.
"""

import argparse
import multiprocessing as mp
import os
import statistics
import time
from multiprocessing.synchronize import Event

from benchmarks.support.timing import timed_ms
from outrider.embedded import EMBEDDED_DRAFT, resolve_model
from outrider.engine.chunk import Chunk
from outrider.engine.eagle3.engine import Eagle3Engine
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider_bench.harness.hosts import available_cores
from outrider_bench.output.results_file import write_result

CONTEXT = 100
SECONDS = 2.0
NUM_PREDRAFTS = (1, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description="A target beside a draft on one machine.")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    target_core, draft_core = available_cores()[:2]
    context = mp.get_context("spawn")
    drafting = {f"draft steps over {count}": context.Event() for count in NUM_PREDRAFTS}
    for count, event in zip(NUM_PREDRAFTS, drafting.values(), strict=True):
        is_ready = context.Event()
        arguments = (draft_core, count, is_ready, event)
        context.Process(target=draft, args=arguments, daemon=True).start()
        is_ready.wait()
    engine = engine_on(target_core, "default", "float32", 1)
    rounds: dict[str, list[float]] = {"draft rests": [], **{name: [] for name in drafting}}
    for _ in range(args.rounds):
        rounds["draft rests"].append(median_ms(engine))
        for name, event in drafting.items():
            event.set()
            rounds[name].append(median_ms(engine))
            event.clear()
    medians = {name: round(statistics.median(values), 2) for name, values in rounds.items()}
    print(medians)
    print(write_result("shared_memory", vars(args), target_pass_ms=medians, rounds=rounds))


def draft(core: int, num_predrafts: int, is_ready: Event, drafting: Event) -> None:
    """Steps of the draft over so many slots, for as long as `drafting` is set."""
    engine = engine_on(core, EMBEDDED_DRAFT, "int8", num_predrafts)
    is_ready.set()
    while drafting.wait():
        engine.forward([Chunk(slot, CONTEXT, [5], 1) for slot in range(num_predrafts)])


def engine_on(core: int, model: str, dtype: str, num_slots: int) -> Engine:
    """An engine with one thread on this core, whose slots have read some tokens."""
    os.sched_setaffinity(0, {core})
    options = EngineOptions(resolve_model(model), dtype=dtype, threads=1, slots=num_slots)
    engine = Eagle3Engine(options) if model == EMBEDDED_DRAFT else Engine(options)
    for slot in range(num_slots):
        engine.forward([Chunk(slot, 0, range(10, 10 + CONTEXT), 1)])
    return engine


def median_ms(engine: Engine) -> float:
    """Of passes of one token, for some seconds."""
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        times.append(timed_ms(lambda: engine.forward([Chunk(0, CONTEXT, [5], 1)])))
    return round(statistics.median(times), 2)


if __name__ == "__main__":
    main()
