"""Speedups over many prompts, each answered alternately by the target alone and with drafts.

    python -m benchmarks.texts [--max-new-tokens 64] [--rounds 3] [--dtype float32]
        [--target-threads 1] [--draft-threads 1] [--draft default] [--draft-dtype auto]
        [--name texts]

For each of the benchmark's prompts, the time per token after the first: of the target alone
over the pair with its defaults, and over the draft without prompt lookup; medians of the
rounds. One thread for each model by default. Texts are compared with the target's own.
"""

import argparse
import statistics
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from outrider.cli.processes import running_system
from outrider.client.client import Client
from outrider.client.results import Generation
from outrider_bench.harness.prompts import read_prompts
from outrider_bench.output.results_file import write_result

ALONE, PAIR, NO_LOOKUP = "target alone", "pair", "draft without prompt lookup"
WAYS: dict[str, dict[str, Any]] = {
    ALONE: {"num_speculative_tokens": 0},
    PAIR: {},
    NO_LOOKUP: {"prompt_lookup": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--target-threads", type=int, default=1)
    parser.add_argument("--draft-threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", help="of the target")
    parser.add_argument("--draft", default="default")
    parser.add_argument("--draft-dtype", default="auto")
    parser.add_argument("--name", default="texts", help="of the result's file")
    args = parser.parse_args()
    prompts = read_prompts(None)
    options = {"port": 0, "slots": 2}
    target = {**options, "threads": args.target_threads, "dtype": args.dtype}
    draft = {**options, "threads": args.draft_threads, "dtype": args.draft_dtype}
    draft["model"] = args.draft
    with (
        running_system(target, draft, {"port": 0}) as (address, _),
        Client(address) as client,
    ):
        measure(client, prompts[0], 16, 1)  # the first text of a service is slower
        texts = [measure(client, p, args.max_new_tokens, args.rounds) for p in prompts]
    summary: dict[str, Any] = {
        way: {
            "median": round(statistics.median(text[way] for text in texts), 3),
            "mean": round(statistics.mean(text[way] for text in texts), 3),
            "least": min(text[way] for text in texts),
        }
        for way in (PAIR, NO_LOOKUP)
    }
    summary["texts_that_differ"] = sum(text["differs_after"] is not None for text in texts)
    print(summary)
    print(write_result(args.name, vars(args), summary=summary, texts=texts))


def measure(client: Client, prompt: str, num_tokens: int, rounds: int) -> dict[str, Any]:
    """Speedups over the target alone, and what the pair's steps were."""
    answers: dict[str, list[Generation]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, changes in WAYS.items():
            message = [{"role": "user", "content": prompt}]
            stream = client.stream(message, max_new_tokens=num_tokens, **changes)
            for _ in stream:
                pass
            answers[way].append(stream.result)
    alone_ms = tpot_ms(answers[ALONE])
    found = {
        "prompt": prompt,
        "ms_a_token_alone": round(alone_ms, 2),
        **{way: round(alone_ms / tpot_ms(answers[way]), 3) for way in (PAIR, NO_LOOKUP)},
        "draft_acceptance_rate": round(answers[PAIR][-1].speculation.draft_acceptance_rate, 3),
        "differs_after": differs_after(
            [generation.token_ids for all_ in answers.values() for generation in all_]
        ),
    }
    print(f"{found[PAIR]:.2f}x {found[NO_LOOKUP]:.2f}x {found['differs_after']} {prompt[:60]}")
    return found


def differs_after(texts: Sequence[Sequence[int]]) -> int | None:
    """How many tokens all have in common from their beginning; None: all are the same."""
    for place, tokens in enumerate(zip_longest(*texts)):
        if len(set(tokens)) > 1:
            return place
    return None


def tpot_ms(generations: Sequence[Generation]) -> float:
    return statistics.median(generation.latency.tpot_ns for generation in generations) / 1e6


if __name__ == "__main__":
    main()
