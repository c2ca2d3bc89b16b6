"""What a pass costs by its number of tokens, with and without packed linear layers.

    python -m benchmarks.passes [--threads 1] [--context 256]

The shape of this curve decides what speculation is worth: a verification of k
draft tokens is a pass of k + 1.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks.results_file import write_result
from outrider.embedded import resolve_model
from outrider.engine import model as engine_model
from outrider.engine.attention import Chunk
from outrider.engine.model import Engine, EngineOptions

WIDTHS = (1, 2, 3, 4, 5, 7, 9, 13, 17, 33)
REPEATS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--context", type=int, default=256)
    args = parser.parse_args()
    options = EngineOptions(
        str(resolve_model(args.model)), dtype=args.dtype, threads=args.threads, slots=1
    )
    packed = Engine(options)
    engine_model.pack_linears = lambda module: None  # type: ignore[attr-defined]
    plain = Engine(options)
    figures = [measure(packed, plain, args.context, width) for width in WIDTHS]
    print(f"{'tokens':>6} {'packed ms':>10} {'nn.Linear ms':>13}")
    for row in figures:
        print(f"{row['tokens']:6} {row['packed_ms']:10.1f} {row['plain_ms']:13.1f}")
    settings = {**vars(args), "dtype": str(packed.dtype), "threads": torch.get_num_threads()}
    print(write_result(f"passes_{args.threads}_threads", settings, figures))


def measure(packed: Engine, plain: Engine, context: int, width: int) -> dict[str, float]:
    """Median times of one pass of `width` tokens after `context` tokens, the engines in turn."""
    times: dict[Engine, list[float]] = {packed: [], plain: []}
    for engine in times:
        engine.forward([Chunk(0, 0, range(10, 10 + context))])
    for _ in range(REPEATS):
        for engine, seconds in times.items():
            began = time.perf_counter()
            engine.forward([Chunk(0, context, range(width), width)])
            seconds.append(time.perf_counter() - began)
    medians = [statistics.median(seconds) * 1e3 for seconds in times.values()]
    return {"tokens": width, "packed_ms": round(medians[0], 2), "plain_ms": round(medians[1], 2)}


if __name__ == "__main__":
    main()
