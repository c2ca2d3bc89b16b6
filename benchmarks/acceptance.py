"""How often the target accepts a draft, and what a draft step costs.

    python -m benchmarks.acceptance [--draft default] [--threads 1] [--temperature 0]

All prompts of prompts.txt, none of which a draft of ours was trained on, through the
three services, with fixed draft lengths. The rate at position i counts the steps that
accepted at least i + 1 draft tokens.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from benchmarks.loop import PROMPTS
from benchmarks.results_file import write_result
from outrider.client import Client
from outrider.generation import Generation
from outrider.processes import running_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="default")
    parser.add_argument("--draft", default="default")
    parser.add_argument("--dtype", default="auto", help="of the target")
    parser.add_argument("--draft-dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1, help="of each of the two models")
    parser.add_argument("--lengths", default="1,2,4,8")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--name", default="acceptance", help="of the result's file")
    args = parser.parse_args()
    target = {"model": args.target, "dtype": args.dtype, "threads": args.threads, "port": 0}
    draft = {**target, "model": args.draft, "dtype": args.draft_dtype}
    prompts = PROMPTS.read_text().splitlines()
    figures = []
    with running_system(target, draft, {"port": 0}) as (address, _), Client(address) as client:
        for k in map(int, args.lengths.split(",")):
            figures.append(summary(k, [generate(client, p, k, args) for p in prompts]))
            print(figures[-1])
    print(write_result(args.name, {**vars(args), "num_prompts": len(prompts)}, figures))


def generate(client: Client, prompt: str, k: int, args: argparse.Namespace) -> Generation:
    return client.generate(
        [{"role": "user", "content": prompt}],
        max_new_tokens=args.max_new_tokens,
        num_speculative_tokens=k,
        num_branches=0,  # prepared drafts are shorter, and nobody waits for them
        temperature=args.temperature,
        seed=1,
        ignore_eos=True,
    )


def summary(k: int, generations: list[Generation]) -> dict[str, Any]:
    """Counts over all prompts, then ratios."""
    parts = [generation.speculation for generation in generations]
    steps = sum(part.num_steps for part in parts)
    drafted = sum(part.num_draft_tokens for part in parts)
    accepted = sum(part.num_accepted_tokens for part in parts)
    histogram = [
        sum(counts)
        for counts in itertools.zip_longest(*(p.acceptance_histogram for p in parts), fillvalue=0)
    ]
    draft_ms = stage_ms(generations, "draft_compute") / drafted
    verify_ms = stage_ms(generations, "verify_compute") / steps
    return {
        "num_speculative_tokens": k,
        "num_steps": steps,
        "draft_acceptance_rate": round(accepted / drafted, 3),
        "acceptance_rate_per_position": [
            round(sum(histogram[i + 1 :]) / steps, 3) for i in range(len(histogram) - 1)
        ],
        "mean_acceptance_length": round(1 + accepted / steps, 3),
        "draft_ms_per_token": round(draft_ms, 2),
        "verify_ms": round(verify_ms, 2),
        "cost_coefficient": round(draft_ms / verify_ms, 3),
    }


def stage_ms(generations: list[Generation], stage: str) -> float:
    return sum(g.latency.critical_path.get(stage, 0) for g in generations) / 1e6


if __name__ == "__main__":
    main()
