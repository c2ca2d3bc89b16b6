"""The time of a pass by its number of tokens, and the effect of each of the engine's measures.

    python -m benchmarks.passes [--threads 1] [--context 256]

The shape of this curve decides what speculation is worth: a verification of k
draft tokens is a pass of k + 1, and drafting them is k passes of 1.

- served: fused layers, packed weights, in float16 where that loses nothing
- wide: the same with weights in float32
- unfused: transformers' own layers, packed weights
- uncompiled: fused layers as Python runs them, packed weights
- unpacked: fused layers, weights as `nn.Linear` has them
- plain: neither
- any_shape: as served, but kernels may have any shape (`outrider/engine/shapes.py`)
- int8: fused layers in int8, as drafts may be
- bfloat16: fused layers in bfloat16
- bf16_any: the same, with any shape

All but the last three compute in float32 and give the same logits. Where kernels may have any
shape, or weights are not packed, a token's logits also depend a little on the number of tokens in
the pass: `logit_difference` is the largest found.
"""

import argparse
import statistics
from contextlib import ExitStack
from functools import partial
from typing import Any
from unittest import mock

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

# The dtype, and which measures to leave out.
VARIANTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "served": ("float32", ()),
    "wide": ("float32", ("packed_linear.fits_float16",)),
    "unfused": ("float32", ("network.can_fuse",)),
    "uncompiled": ("float32", ("model.compile_network",)),
    "unpacked": ("float32", ("model.pack_linears",)),
    "plain": ("float32", ("network.can_fuse", "model.pack_linears")),
    "any_shape": ("float32", ()),
    "int8": ("int8", ()),
    "bfloat16": ("bfloat16", ()),
    "bf16_any": ("bfloat16", ()),
}
OF_ANY_SHAPE = ("any_shape", "bf16_any")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a pass costs by its number of tokens.")
    parser.add_argument("--model", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--context", type=int, default=256)
    args = parser.parse_args()
    model = resolve_model(args.model)
    engines = {name: engine_of(model, args.threads, name) for name in VARIANTS}
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


def engine_of(model: str, threads: int, variant: str) -> Engine:
    """An engine without some of its measures."""
    dtype, left_out = VARIANTS[variant]
    options = EngineOptions(
        model, dtype=dtype, threads=threads, slots=1, batch_invariant=variant not in OF_ANY_SHAPE
    )
    with ExitStack() as stack:
        for name in left_out:
            stack.enter_context(mock.patch(f"outrider.engine.{name}", return_value=False))
        return Engine(options)


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
