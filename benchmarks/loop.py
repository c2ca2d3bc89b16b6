"""The loop against its baselines, on the same weights, prompts and machine, in one run.

    python -m benchmarks.loop [--threads 1] [--prompts 8] [--drafts ngram@4,default@1]

Per prompt, one after the other, greedy, the same number of tokens:

- transformers `generate`
- the target alone, through the three services
- for each draft: the loop in one process, draft and target in turn; the same over
  gRPC; and over gRPC with outcomes prepared while the target verifies

`default@1` is the default draft with one draft token a step; a draft `layers:N` is
made of N of the target's own layers. The threads are those of each process. The
ratios are medians over prompts of time per output token; all outputs are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import one_process, plain_transformers
from benchmarks.layer_draft import layer_draft
from benchmarks.results_file import write_result
from orchestrator.generation import DEFAULT_NUM_BRANCHES
from outrider.client import Client
from outrider.embedded import resolve_model
from outrider.engine.model import EngineOptions
from outrider.processes import running_system

PROMPTS = Path(__file__).parent / "prompts.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", help="of the target")
    parser.add_argument("--prompts", type=int, default=8, help="how many of prompts.txt")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--num-branches", type=int, default=DEFAULT_NUM_BRANCHES)
    parser.add_argument("--drafts", default="ngram@4,default@1")
    parser.add_argument("--name", default="loop", help="of the result's file")
    args = parser.parse_args()
    folder = resolve_model("default")
    drafts = [Draft.of(folder, text) for text in args.drafts.split(",")]
    with ExitStack() as stack:
        bench = Bench(stack, folder, drafts, args)
        rows = []
        for prompt in spread(PROMPTS.read_text().splitlines(), args.prompts):
            rows.append(bench.measure(prompt))
            print(f"{prompt[:40]:40}", {name: round(ms, 1) for name, ms in rows[-1].items()})
    names = [draft.name for draft in drafts]
    print(write_result(args.name, vars(args), summary(rows, names, bench.num_different)))


@dataclass(frozen=True)
class Draft:
    """What `--model` of the draft service takes, and how many draft tokens a step."""

    name: str
    model: str
    k: int

    @classmethod
    def of(cls, folder: str, text: str) -> Draft:
        """From a part of `--drafts`."""
        name, _, k = text.partition("@")
        kind, _, count = name.partition(":")
        model = str(layer_draft(folder, int(count))) if kind == "layers" else name
        return cls(name, model, int(k))


def spread(lines: Sequence[str], count: int) -> list[str]:
    """`count` lines, evenly over all of them."""
    return [lines[i * len(lines) // count] for i in range(min(count, len(lines)))]


class Bench:
    """Every way to generate, each in processes of its own, so that they differ in nothing else."""

    def __init__(
        self, stack: ExitStack, folder: str, drafts: list[Draft], args: argparse.Namespace
    ) -> None:
        self.args = args
        self.drafts = drafts
        self.num_different = 0
        settings = {"dtype": args.dtype, "threads": args.threads}
        self.transformers = self._worker(stack, plain_transformers.load, folder, settings)
        target = EngineOptions(folder, slots=2, **settings)
        self.local = {}
        self.clients = {}
        for draft in drafts:
            options = EngineOptions(draft.model, threads=args.threads, slots=2)
            self.local[draft.name] = self._worker(stack, one_process.load, target, options)
            address, _ = stack.enter_context(
                running_system(
                    {**settings, "model": folder, "port": 0},
                    {"threads": args.threads, "model": draft.model, "port": 0},
                    {"port": 0},
                )
            )
            self.clients[draft.name] = stack.enter_context(Client(address))

    @staticmethod
    def _worker(stack: ExitStack, load: Any, *arguments: Any) -> ProcessPoolExecutor:
        """A process that has loaded its models."""
        worker = ProcessPoolExecutor(1, get_context("spawn"), load, arguments)
        return stack.enter_context(worker)

    def measure(self, prompt: str) -> dict[str, float]:
        """Milliseconds per output token of each way, one after the other."""
        count = self.args.max_new_tokens
        ids = self.transformers.submit(plain_transformers.encode, prompt).result()
        outputs = {
            "transformers": self.transformers.submit(
                plain_transformers.generate, ids, count
            ).result(),
            "target alone": self.over_grpc(next(iter(self.clients.values())), prompt, 0),
        }
        for draft in self.drafts:
            name, client = draft.name, self.clients[draft.name]
            worker = self.local[name].submit(one_process.generate, ids, count, draft.k)
            outputs[f"{name}, one process"] = worker.result()
            outputs[f"{name}, gRPC"] = self.over_grpc(client, prompt, draft.k)
            outputs[f"{name}, prepared"] = self.over_grpc(
                client, prompt, draft.k, self.args.num_branches
            )
        expected = outputs["target alone"][0]
        self.num_different += sum(tokens != expected for tokens, _ in outputs.values())
        return {name: seconds * 1e3 / count for name, (_, seconds) in outputs.items()}

    def over_grpc(
        self, client: Client, prompt: str, k: int, num_branches: int = 0
    ) -> tuple[list[int], float]:
        """The tokens, and the seconds as the client sees them."""
        began = time.perf_counter()
        generation = client.generate(
            [{"role": "user", "content": prompt}],
            max_new_tokens=self.args.max_new_tokens,
            num_speculative_tokens=k,
            num_branches=num_branches,
            ignore_eos=True,
        )
        return generation.token_ids, time.perf_counter() - began


def summary(rows: list[dict[str, float]], drafts: list[str], num_different: int) -> dict[str, Any]:
    """Medians over prompts, of times and of the ratios within a prompt."""

    def median_ratio(slow: str, fast: str) -> float:
        return round(statistics.median(row[slow] / row[fast] for row in rows), 3)

    ratios = {"target alone vs transformers": median_ratio("transformers", "target alone")}
    for name in drafts:
        ratios[f"{name}: gRPC vs one process"] = median_ratio(
            f"{name}, one process", f"{name}, gRPC"
        )
        ratios[f"{name}: in turn vs target alone"] = median_ratio("target alone", f"{name}, gRPC")
        ratios[f"{name}: prepared vs target alone"] = median_ratio(
            "target alone", f"{name}, prepared"
        )
        ratios[f"{name}: prepared vs in turn"] = median_ratio(f"{name}, gRPC", f"{name}, prepared")
    medians = {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
    for name, value in ratios.items():
        print(f"{name:45} {value:.2f}x")
    return {
        "ms_per_token": medians,
        "ratios": ratios,
        "num_prompts": len(rows),
        "outputs_that_differ_from_target_alone": num_different,
        "per_prompt_ms": rows,
    }


if __name__ == "__main__":
    main()
