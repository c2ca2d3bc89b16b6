"""Traces of one answer, sequential and pipelined, of which a step is drawn.

    python -m benchmarks.timeline [--num-speculative-tokens 4] [--max-new-tokens 24] [--rounds 5]

Both answer in turn, and of each the answer of median time is kept. The default pair has a thread
for each model, a fixed draft length and no prompt lookup, so that the steps of both have the same
parts. `outrider report` makes a page of the answers, too.
"""

import argparse
from typing import Any

from outrider.cli.pages.request import record
from outrider.cli.processes import running_system
from outrider.client.client import Client
from outrider_bench.harness.prompts import read_prompts
from outrider_bench.harness.sections import PIPELINED, PREDRAFTS
from outrider_bench.output.plots import write_plots
from outrider_bench.output.results_file import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-speculative-tokens", type=int, default=4, help="in each step")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="timeline", help="of the result's files")
    args = parser.parse_args()
    prompt = read_prompts(None)[0]
    models = {"port": 0, "slots": 2, "threads": 1}
    with (
        running_system(models, models, {"port": 0}) as (address, _),
        Client(address) as client,
    ):
        answer(client, prompt, PIPELINED, args)  # the first text of a service is slower
        rounds = [
            {mode: answer(client, prompt, mode, args) for mode in PREDRAFTS}
            for _ in range(args.rounds)
        ]
    requests = {mode: of_median_time([each[mode] for each in rounds]) for mode in PREDRAFTS}
    result = write_result(args.name, vars(args), requests=requests)
    print(result, *write_plots(result), sep="\n")


def answer(client: Client, prompt: str, mode: str, args: argparse.Namespace) -> dict[str, Any]:
    stream = client.stream(
        [{"role": "user", "content": prompt}],
        max_new_tokens=args.max_new_tokens,
        num_speculative_tokens=args.num_speculative_tokens,
        num_predrafts=PREDRAFTS[mode],
        trace=True,
    )
    return record(prompt, stream)


def of_median_time(requests: list[dict[str, Any]]) -> dict[str, Any]:
    by_time = sorted(requests, key=lambda request: request["latency"]["tpot_ns"])
    return by_time[len(by_time) // 2]


if __name__ == "__main__":
    main()
