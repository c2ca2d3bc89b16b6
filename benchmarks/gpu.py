"""Models of real sizes on a GPU: times of passes, and the pair with its baselines.

    python -m benchmarks.gpu [--pair pythia] [--dtype bfloat16] [--parts passes,modes,acceptance]

Weights are random, drawn from a seed: the time of a pass does not depend on them. A random
draft is never right, so acceptance is chosen: a draft service runs the draft model for its
cost and proposes the target's recorded tokens, wrong with a chosen probability. A random
target's best tokens nearly tie, and in half precision another shape of a pass would choose
another one; so where texts are replayed its head is made of its embedding, such that each
token has one successor by far.

The result is written after each part. Parts may be run separately (with `--name`).

- passes: a verification of some tokens by the target and a step of the draft, with and
  without graphs, our kernels and our layers, over the time that reading the weights takes at
  the measured bandwidth of a copy; with tokens chosen on the device, one verification at a
  time and several draft steps in a row; and after how many tokens texts of all these ways
  differ, if at all (in float32 they should not)
- modes: `outrider bench`'s side-by-side table, in which the random draft is always wrong
- acceptance: speed at chosen acceptances, with draft length 15 and with the policy's
"""

import argparse
import contextlib
import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console

from benchmarks.support.random_models import build, pair_configs
from benchmarks.support.timing import median_ms, timed_ms
from benchmarks.texts import differs_after
from outrider.engine.chunk import Chunk
from outrider.engine.device import choose_device
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.protocol.messages import GREEDY, SamplingParams
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider_bench import RESULTS
from outrider_bench.harness.hosts import available_cores
from outrider_bench.harness.measuring import measure
from outrider_bench.harness.prompts import read_prompts, spread
from outrider_bench.harness.sections import Plan
from outrider_bench.harness.stand import Models
from outrider_bench.output.results_file import write_result
from outrider_bench.output.terminal import show
from outrider_bench.runs import Task

WIDTHS = (1, 2, 4, 8, 16)
NUM_STEPS = 8
ACCEPTANCES = (0.6, 0.75, 0.875, 0.94)
FIXED_LENGTH = 15
CONTEXT = 256
# The services, transformers and both models in one process are on one GPU, and one text at a time.
NUM_SLOTS = 4
_REPEATS = 20
# Variants of passes: functions to replace, by name.
_WAYS: dict[str, dict[str, Any]] = {
    "graphs": {},
    "graphs_without_our_kernels": {"outrider.engine.cuda.recording_check.kernels_for": None},
    "graphs_without_our_layers": {"outrider.engine.cuda.gpu_network.gpu_networks": []},
    "eager": {},
}
_COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=("pythia", "llama", "tiny"), default="pythia")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--parts", default="passes,modes,acceptance")
    parser.add_argument("--num-prompts", type=int, default=6)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of the result's file")
    args = parser.parse_args(arguments)
    settings = {**vars(args), "output": str(args.output)}
    found: dict[str, Any] = {}
    target, draft = pair_configs(args.pair)
    for part in args.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            where = (Path(folder), args.dtype, args.device)
            built = [
                build(target, *where, name="target", decides=part != "passes"),
                build(draft, *where, name="draft"),
            ]
            release_memory()  # for the processes that come
            if part == "passes":
                measured = [passes(path, args.dtype, args.device) for path in built]
                found[part] = dict(zip(("target", "draft"), measured, strict=True))
                print(json.dumps(found[part], indent=1))
            else:
                found[part] = side_by_side(part, built, args)
        print(write_result(args.name or f"gpu_{args.pair}", settings, args.output, **found))


def passes(folder: str, dtype: str, device: str) -> dict[str, Any]:
    """Medians of passes, ms, by their number of tokens, behind CONTEXT tokens."""
    bandwidth = copy_bandwidth(choose_device(device))
    found: dict[str, Any] = {"bandwidth_gb_per_s": round(bandwidth / 1e9, 1)}
    texts = []
    for way, says in _WAYS.items():
        with contextlib.ExitStack() as stack:
            for name, value in says.items():
                stack.enter_context(mock.patch(name, mock.Mock(return_value=value)))
            engine = Engine(EngineOptions(folder, device, dtype, slots=2, graphs=way != "eager"))
        read_ms = 1e3 * bytes_read(engine) / bandwidth
        ms = {width: pass_ms(engine, width) for width in WIDTHS}
        found["read_weights_ms"] = round(read_ms, 3)
        found[way] = {
            "network": type(engine.network).__name__,
            "recorded": engine.graphs is not None,
            "our_kernels": engine.graphs is not None and engine.graphs.kernels is not None,
            "ms": ms,
            "over_reading_weights": {n: round(took / read_ms, 2) for n, took in ms.items()},
        }
        if engine.choices is not None:
            found[way]["spec"] = spec(engine, read_ms)
            texts.append(chosen_text(engine))
        texts.append(greedy_text(engine))
        del engine
        release_memory()  # there is room for one at a time
    found["texts_differ_after"] = differs_after(texts)
    return found


def release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pass_ms(engine: Engine, width: int) -> float:
    """The median of one pass of so many tokens."""
    chunk = Chunk(0, CONTEXT, range(width), width)
    return behind_context_ms(engine, lambda: engine.forward([chunk]))


def spec(engine: Engine, read_ms: float) -> dict[str, Any]:
    """Medians of passes that end with tokens, ms, and over the reading of the weights."""
    found: dict[str, Any] = {}
    for name, params in (
        ("greedy", GREEDY),
        ("sampled", SamplingParams(1.0, seed=1)),
        ("filtered", SamplingParams(1.0, top_p=0.95, seed=1)),
    ):
        ms = {f"verification of {n}": spec_ms(engine, params, n, 1) for n in WIDTHS}
        steps_ms = spec_ms(engine, params, 1, NUM_STEPS)
        ms[f"draft step, {NUM_STEPS} in a row"] = steps_ms and round(steps_ms / NUM_STEPS, 3)
        found[name] = {
            "ms": ms,
            "over_reading_weights": {
                n: took and round(took / read_ms, 2) for n, took in ms.items()
            },
        }
    return found


def spec_ms(engine: Engine, params: SamplingParams, width: int, num_steps: int) -> float | None:
    """The median of a verification of so many tokens, or of so many draft steps.

    None if they are not recorded.
    """
    chunk = Chunk(0, CONTEXT, range(width), width)
    one = SamplingSpec(params, len(engine.logit_token_ids), width=1 if num_steps == 1 else 5)
    [chosen] = engine.choose([chunk], [one], num_steps)
    if len(chosen) != max(width, num_steps) or isinstance(chosen, torch.Tensor):
        return None
    return behind_context_ms(engine, lambda: engine.choose([chunk], [one], num_steps))


def behind_context_ms(engine: Engine, run: Callable[[], Any]) -> float:
    """The median of some runs behind CONTEXT tokens, the first ones left out."""
    engine.forward([Chunk(0, 0, range(CONTEXT))])
    return round(median_ms(run, _REPEATS, first=_REPEATS // 4), 3)


def greedy_text(engine: Engine, num_tokens: int = 64) -> list[int]:
    """What the engine says after a few tokens, one by one."""
    tokens = [1, 2, 3]
    start = 0
    while len(tokens) < num_tokens:
        [logits] = engine.forward([Chunk(0, start, tokens[start:], 1)])
        start = len(tokens)
        tokens.append(int(logits.argmax()))
    return tokens


def chosen_text(engine: Engine, num_tokens: int = 64) -> list[int]:
    """The same with tokens that the engine chooses, several in a row."""
    tokens = [1, 2, 3]
    start = 0
    spec = SamplingSpec(GREEDY, len(engine.logit_token_ids))
    while len(tokens) < num_tokens:
        num_steps = min(NUM_STEPS, num_tokens - len(tokens))
        [chosen] = engine.choose([Chunk(0, start, tokens[start:], 1)], [spec], num_steps)
        tokens += [choices[0].token_id for choices in chosen]
        start = len(tokens) - 1
    return tokens


def bytes_read(engine: Engine) -> int:
    """Of the weights that a short pass reads: of an embedding only some rows, if it is no head."""
    tensors = {t.data_ptr(): t for t in engine.network.state_dict().values()}
    largest_tables = sorted(
        (t.nbytes for t in tensors.values() if t.shape[:1] == (engine.vocab_size,)), reverse=True
    )
    return sum(t.nbytes for t in tensors.values()) - sum(largest_tables[1:])


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.zeros(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)

    def run() -> None:
        copy.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return 2e3 * source.nbytes / min(timed_ms(run) for _ in range(10))


def side_by_side(part: str, built: Sequence[str], args: argparse.Namespace) -> dict[str, Any]:
    """A section of `outrider bench` with a draft length of 15 and with the policy's."""
    lines = spread(read_prompts(None), args.num_prompts)
    tasks = [Task(line, args.max_new_tokens, seed=1) for line in lines]
    # Each of two hosts a quarter of the cores; what has none of its own takes the rest.
    threads = max(1, len(available_cores()) // 4)
    models_ = Models(*built, args.device, args.dtype, args.dtype, threads, NUM_SLOTS)
    console = Console(highlight=False, width=140)
    found = {}
    for name, k in ((f"k = {FIXED_LENGTH}", FIXED_LENGTH), ("k by the policy", None)):
        plan = Plan(tasks, tasks, k=k, looks_up=False, acceptances=ACCEPTANCES)
        document = measure(models_, plan, [part], console)
        console.print(name)
        show(document, console)
        found[name] = document["sections"][part]
    return found


if __name__ == "__main__":
    main()
