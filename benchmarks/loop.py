"""The loop against its baselines, on the same weights, prompts and machine, in one run.

    python -m benchmarks.loop [--threads 2] [--prompts 8] [--drafts ngram,layers:24]

Per prompt, one after the other, greedy, the same number of tokens:

- transformers `generate`
- the target alone, through the three services
- for each draft: the loop in one process, and the same loop over gRPC

A draft `layers:N` is made of N of the target's own layers. The ratios are medians
over prompts of time per output token; all outputs are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.layer_draft import layer_draft
from benchmarks.local_pair import LocalDrafter, LocalVerifier
from benchmarks.results_file import write_result
from draft_service.__main__ import load_drafter
from orchestrator.decoder import decode
from orchestrator.latency import CriticalPath
from outrider.client import Client
from outrider.embedded import resolve_model
from outrider.engine.model import Engine, EngineOptions
from outrider.processes import running_system
from target_service.verifier import Verifier

PROMPTS = Path(__file__).parent / "prompts.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompts", type=int, default=8, help="how many of prompts.txt")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--drafts", default="ngram,layers:24")
    args = parser.parse_args()
    print(write_result("loop", vars(args), run(args)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    folder = resolve_model("default")
    drafts = {name: draft_model(folder, name) for name in args.drafts.split(",")}
    bench = Bench(folder, args)
    with ExitStack() as stack:
        clients = {name: bench.start(stack, draft) for name, draft in drafts.items()}
        local = {name: load_drafter(bench.options(draft))[1] for name, draft in drafts.items()}
        rows = []
        for prompt in spread(PROMPTS.read_text().splitlines(), args.prompts):
            rows.append(bench.measure(prompt, clients, local))
            print(f"{prompt[:50]:50}", {name: round(ms, 1) for name, ms in rows[-1].items()})
    return summary(rows, list(drafts), bench.num_different)


def draft_model(folder: str, name: str) -> str:
    """What `--model` of the draft service takes for a name of `--drafts`."""
    kind, _, count = name.partition(":")
    return str(layer_draft(folder, int(count))) if kind == "layers" else name


def spread(lines: Sequence[str], count: int) -> list[str]:
    """`count` lines, evenly over all of them."""
    return [lines[i * len(lines) // count] for i in range(min(count, len(lines)))]


class Bench:
    """One run: the models in this process, and the services beside it."""

    def __init__(self, folder: str, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = folder
        self.num_different = 0
        self.engine = Engine(self.options(folder))
        self.verifier = Verifier(self.engine)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.engine.dtype).eval()

    def options(self, model: str) -> EngineOptions:
        return EngineOptions(model, dtype=self.args.dtype, threads=self.args.threads, slots=2)

    def start(self, stack: ExitStack, draft: str) -> Client:
        """Three processes; a client to their orchestrator."""
        settings = {"dtype": self.args.dtype, "threads": self.args.threads, "port": 0}
        address, _ = stack.enter_context(
            running_system(
                {**settings, "model": self.folder}, {**settings, "model": draft}, {"port": 0}
            )
        )
        return stack.enter_context(Client(address))

    def measure(
        self, prompt: str, clients: dict[str, Client], local: dict[str, Any]
    ) -> dict[str, float]:
        """Milliseconds per output token of each way, for one prompt."""
        messages = [{"role": "user", "content": prompt}]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        outputs = {"transformers": self.transformers_generate(ids)}
        first = next(iter(clients.values()))
        outputs["target alone"] = self.over_grpc(first, messages, 0)
        for name, client in clients.items():
            outputs[f"{name}, one process"] = asyncio.run(self.in_process(ids, local[name]))
            outputs[f"{name}, gRPC"] = self.over_grpc(client, messages, self.args.k)
        expected = outputs["target alone"][0]
        self.num_different += sum(tokens != expected for tokens, _ in outputs.values())
        return {name: ms for name, (_, ms) in outputs.items()}

    def transformers_generate(self, ids: list[int]) -> tuple[list[int], float]:
        count = self.args.max_new_tokens
        settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        began = time.perf_counter()
        output = self.model.generate(torch.tensor([ids]), max_new_tokens=count, **settings)
        elapsed_ms = (time.perf_counter() - began) * 1e3
        return output[0, len(ids) :].tolist(), elapsed_ms / count

    def over_grpc(self, client: Client, messages: Any, k: int) -> tuple[list[int], float]:
        count = self.args.max_new_tokens
        began = time.perf_counter()
        generation = client.generate(
            messages, max_new_tokens=count, num_speculative_tokens=k, ignore_eos=True
        )
        elapsed_ms = (time.perf_counter() - began) * 1e3
        return generation.token_ids, elapsed_ms / count

    async def in_process(self, ids: list[int], drafter: Any) -> tuple[list[int], float]:
        count = self.args.max_new_tokens
        sessions = drafter.open_session(), self.verifier.open_session()
        began = time.perf_counter()
        tokens: list[int] = []
        async for step in decode(
            ids,
            len(ids) + count,
            LocalVerifier(sessions[1]),
            LocalDrafter(sessions[0], self.engine.max_context_length),
            self.args.k,
            CriticalPath(),
        ):
            tokens.extend(step.token_ids)
        elapsed_ms = (time.perf_counter() - began) * 1e3
        for session in sessions:
            session.close()
        return tokens, elapsed_ms / count


def summary(rows: list[dict[str, float]], drafts: list[str], num_different: int) -> dict[str, Any]:
    """Medians over prompts, of times and of the ratios within a prompt."""

    def median_ratio(slow: str, fast: str) -> float:
        return round(statistics.median(row[slow] / row[fast] for row in rows), 3)

    ratios = {"target alone vs transformers": median_ratio("transformers", "target alone")}
    for name in drafts:
        ratios[f"{name}: gRPC vs one process"] = median_ratio(
            f"{name}, one process", f"{name}, gRPC"
        )
        ratios[f"{name}: speedup over target alone"] = median_ratio("target alone", f"{name}, gRPC")
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
