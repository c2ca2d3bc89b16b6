"""The time of a pass by its number of tokens, in each precision.

    python -m benchmarks.passes [--threads 1] [--context 256]

The shape of this curve decides what speculation is worth: a verification of k
draft tokens is a pass of k + 1, and drafting them is k passes of 1.

- served: in float32, as targets are on a CPU
- any_shape: the same, but kernels may have any shape (`outrider/engine/shapes.py`)
- int8: as drafts may be
- bfloat16
- bf16_any: the same, with any shape

Where kernels may have any shape, a token's logits also depend a little on the number of tokens in
the pass: `logit_difference` is the largest found.
"""

import argparse
import statistics
from functools import partial
from typing import Any

import torch

from benchmarks.support.timing import timed_ms
from outrider.embedded import resolve_model
from outrider.engine.chunk import Chunk
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider_bench.output.results_file import write_result

WIDTHS = (1, 2, 3, 5, 9, 17, 65, 256)
REPEATS = 9
_WIDEST_VERIFICATION = 65

# The dtype, and whether kernels must have shapes that make passes alike.
VARIANTS = {
    "served": ("float32", True),
    "any_shape": ("float32", False),
    "int8": ("int8", True),
    "bfloat16": ("bfloat16", True),
    "bf16_any": ("bfloat16", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What a pass costs by its number of tokens.")
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, default=256)
    args = parser.parse_args()
    model = resolve_model(args.model)
    engines = {
        name: Engine(
            EngineOptions(
                model, dtype=dtype, threads=args.threads, slots=1, batch_invariant=is_invariant
            )
        )
        for name, (dtype, is_invariant) in VARIANTS.items()
    }
    print("tokens", *(f"{name:>9}" for name in engines))
    figures = []
    for width in WIDTHS:
        figures.append({"tokens": width, "ms": measure(engines, args.context, width)})
        print(f"{width:6}", *(f"{ms:9.1f}" for ms in figures[-1]["ms"].values()))
    differences = {name: logit_difference(engine, args.context) for name, engine in engines.items()}
    print("logit difference", differences)
    settings = {**vars(args), "threads": torch.get_num_threads()}
    name = f"passes_{args.threads}_threads"
    print(write_result(name, settings, figures=figures, logit_difference=differences))


def logit_difference(engine: Engine, context: int) -> float:
    """The largest between 20 tokens read one by one and the same in one pass."""
    tokens = range(100, 120)
    alone = [
        engine.forward([Chunk(0, context + place, [token], 1)])[0]
        for place, token in enumerate(tokens)
    ]
    [together] = engine.forward([Chunk(0, context, tokens, len(tokens))])
    return float((torch.cat(alone) - together).abs().max())


def measure(engines: dict[str, Engine], context: int, width: int) -> dict[str, Any]:
    """Median ms of one pass of `width` tokens after `context` tokens; the engines alternate.

    A chunk wider than a verification is a prompt's, and needs logits of one token only.
    """
    num_logits = width if width <= _WIDEST_VERIFICATION else 1
    times: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        engine.forward([Chunk(0, 0, range(10, 10 + context))])
    for _ in range(REPEATS):
        for name, engine in engines.items():
            chunk = Chunk(0, context, range(width), num_logits)
            times[name].append(timed_ms(partial(engine.forward, [chunk])))
    return {name: round(statistics.median(took), 2) for name, took in times.items()}


if __name__ == "__main__":
    main()
