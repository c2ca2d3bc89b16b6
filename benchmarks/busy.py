"""The time of a token beside another program that computes on every core.

    python -m benchmarks.busy [--max-new-tokens 48] [--fixed-texts 1]

The pair as `outrider up` starts it, with threads that adapt and with fixed ones: on the quiet
machine, and beside a program that multiplies matrices with a thread on each core, at niceness 0, 5
and 10. Medians of five texts after the first. Fixed threads are slow there: they get
`--fixed-texts` texts after the first, of 8 tokens. Meanwhile each service is asked for its health,
twenty times a second, and so is a server that does nothing else (`bare`), which shows how long the
machine keeps any process waiting.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.cli.local_pair import share_cores
from outrider.cli.processes import running_system
from outrider.client.client import Client
from outrider_bench.harness.prompts import read_prompts
from outrider_bench.output.results_file import write_result

NUM_TEXTS = 5
NICENESSES = (0, 5, 10)
PROGRAM = """
import os, sys, torch
os.nice(int(sys.argv[1]))
matrix = torch.randn(1000, 1000)
while os.getppid() == int(sys.argv[2]):
    matrix @ matrix
"""
BARE = """
import asyncio, sys
from grpc import aio
from grpc_health.v1 import health, health_pb2_grpc

async def main():
    server = aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    print(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


class System:
    """The pair and its orchestrator, as `up` starts them."""

    def __init__(self, stack: ExitStack, **settings: Any) -> None:
        models: list[dict[str, Any]] = [{"threads": None}, {"threads": None}]
        share_cores(*models)
        common = {"port": 0, "slots": 2}
        address, self.processes = stack.enter_context(
            running_system(
                {**models[0], **common, **settings},
                {**models[1], **common, **settings},
                {"port": 0},
            )
        )
        self.client = stack.enter_context(Client(address))

    def text(self, prompt: str, num_tokens: int) -> tuple[float, int]:
        """Milliseconds of a token after the first, and the target's threads."""
        message = [{"role": "user", "content": prompt}]
        answer = self.client.generate(message, max_new_tokens=num_tokens, ignore_eos=True)
        return answer.latency.tpot_ns / 1e6, answer.num_target_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--fixed-texts", type=int, default=1)
    args = parser.parse_args()
    prompts = read_prompts(None)[: NUM_TEXTS + 1]
    print(write_result("busy", vars(args), **busy_machine(prompts, args)))


def busy_machine(prompts: list[str], args: argparse.Namespace) -> dict[str, Any]:
    num_tokens = args.max_new_tokens
    with ExitStack() as stack:
        adaptive = System(stack)
        fixed = System(stack, no_adapt_threads=True)
        quiet = sequential([adaptive, fixed], prompts, num_tokens)
        figures: dict[str, Any] = {
            "quiet": {"adaptive_ms": quiet[0], "fixed_ms": quiet[1]},
            "beside": {},
        }
        print(figures)
        for niceness in NICENESSES:
            adaptive.text(prompts[0], num_tokens)  # quiet again
            with program(niceness), asked_for_health(adaptive) as waits:
                found = [adaptive.text(prompt, num_tokens) for prompt in prompts]
            with program(niceness):
                times = [fixed.text(prompt, 8)[0] for prompt in prompts[: args.fixed_texts + 1]]
            ms = statistics.median(took for took, _ in found[1:])
            row = {
                "adaptive_ms": round(ms, 1),
                "adaptive_to_quiet": round(ms / quiet[1], 2),
                "first_text_ms": round(found[0][0], 1),
                "threads": [count for _, count in found],
                "fixed_to_quiet": round(statistics.median(times[1:]) / quiet[1], 2),
                "health_ms": {
                    name: {"longest": max(took), "p99": percentile_99(took)}
                    for name, took in waits.items()
                },
            }
            figures["beside"][f"niceness {niceness}"] = row
            print(niceness, row)
    return figures


def sequential(systems: list[System], prompts: list[str], num_tokens: int) -> list[float]:
    """Medians of milliseconds a token, prompt by prompt; the systems take turns in being first."""
    times: list[list[float]] = [[] for _ in systems]
    for number, prompt in enumerate(prompts):
        for place in range(len(systems)):
            at = (number + place) % len(systems)
            times[at].append(systems[at].text(prompt, num_tokens)[0])
    return [round(statistics.median(took[1:]), 2) for took in times]


def percentile_99(numbers: list[float]) -> float:
    return round(statistics.quantiles(numbers, n=100)[-1], 1)


@contextmanager
def program(niceness: int) -> Iterator[None]:
    """Runs another program that computes on all cores."""
    arguments = [sys.executable, "-c", PROGRAM, str(niceness), str(os.getpid())]
    # Without what was said to this process of threads.
    environment = {name: v for name, v in os.environ.items() if name != "OMP_NUM_THREADS"}
    with subprocess.Popen(arguments, env=environment, start_new_session=True) as process:
        try:
            time.sleep(5)  # until it computes
            yield
        finally:
            process.kill()


@contextmanager
def bare_server() -> Iterator[str]:
    """Yields the address of a process that serves health and nothing else."""
    arguments = [sys.executable, "-c", BARE]
    with subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()


@contextmanager
def asked_for_health(system: System) -> Iterator[dict[str, list[float]]]:
    """Asks for health; yields the milliseconds of the answers, by service."""
    is_over = threading.Event()
    request = health_pb2.HealthCheckRequest()

    def ask(address: str, waits: list[float]) -> None:
        with grpc.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            check(request, timeout=60, wait_for_ready=True)
            while not is_over.wait(0.05):
                began = time.perf_counter()
                answer = check(request, timeout=10)
                waits.append(round(1e3 * (time.perf_counter() - began), 1))
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    raise RuntimeError(f"{address} does not serve")

    with bare_server() as bare, ThreadPoolExecutor() as executor:
        addresses = {process.name: process.address for process in system.processes}
        addresses["bare"] = bare
        waits: dict[str, list[float]] = {name: [] for name in addresses}
        asking = [executor.submit(ask, addresses[name], waits[name]) for name in addresses]
        try:
            yield waits
        finally:
            is_over.set()
        for future in asking:
            future.result()


if __name__ == "__main__":
    main()
