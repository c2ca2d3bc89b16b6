"""The gaps in running streams while a long prompt is read.

    python -m benchmarks.long_prompt [--threads 1] [--dtype float32]

The time between the messages of 8 streams of the target alone, before and while it reads a prompt
of 1,500 tokens that arrives among them.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from outrider.cli.processes import running_system
from outrider.client.client import Client
from outrider_bench.harness.prompts import read_prompts
from outrider_bench.output.results_file import write_result

NUM_STREAMS = 8
STREAM_TOKENS = 160
SECONDS_BEFORE = 5.0
PROMPT = " the" * 1_500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--name", default="long_prompt", help="of the result's file")
    args = parser.parse_args()
    target = {"port": 0, "slots": 2 * NUM_STREAMS, "threads": args.threads, "dtype": args.dtype}
    with running_system(target, None, {"port": 0}) as (address, _), Client(address) as client:
        figures = measure(client)
    print(figures)
    print(write_result(args.name, vars(args), figures=figures))


def measure(client: Client) -> dict[str, Any]:
    with ThreadPoolExecutor(NUM_STREAMS) as executor:
        prompts = read_prompts(None)[:NUM_STREAMS]
        streams = [executor.submit(message_times, client, prompt) for prompt in prompts]
        time.sleep(SECONDS_BEFORE)
        arrived = time.perf_counter()
        answer = client.generate(PROMPT, max_new_tokens=2)
        answered = time.perf_counter()
        pairs = [pair for stream in streams for pair in itertools.pairwise(stream.result())]
    before = [now - last for last, now in pairs if arrived - 4 < now < arrived]
    during = [now - last for last, now in pairs if arrived < now < answered]
    return {
        "num_prompt_tokens": answer.usage.num_prompt_tokens,
        "first_token_ms_of_long_prompt": round(answer.latency.ttft_ns / 1e6),
        "gap_ms_before": gaps_ms(before),
        "gap_ms_during": gaps_ms(during),
    }


def message_times(client: Client, prompt: str) -> list[float]:
    """When each message of a stream came, in seconds."""
    message = [{"role": "user", "content": prompt}]
    stream = client.stream(message, max_new_tokens=STREAM_TOKENS, ignore_eos=True)
    return [time.perf_counter() for _ in stream]


def gaps_ms(gaps: Sequence[float]) -> dict[str, float]:
    return {
        "number": len(gaps),
        "median": round(1e3 * statistics.median(gaps), 1),
        "worst": round(1e3 * max(gaps), 1),
    }


if __name__ == "__main__":
    main()
