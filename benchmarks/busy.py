"""The time of a token beside another program that computes on every core, and within a CPU quota.

    python -m benchmarks.busy [--max-new-tokens 48] [--fixed-texts 1] [--rounds 4] [--no-quota]

First the target alone on a quiet machine, with threads that adapt, and two more with fixed
threads, alternately, for `--rounds` of six prompts. Then the pair as `outrider up` starts it, with
either kind of threads: on the quiet machine, and beside a program that multiplies matrices with a
thread on each core, at niceness 0, 5 and 10. Medians of five texts after the first. Fixed threads
are slow there: they get `--fixed-texts` texts after the first, of 8 tokens. Meanwhile each service
is asked for its health, twenty times a second, and so is a server that does nothing else (`bare`),
which shows how long the machine keeps any process waiting. Then the pair in a control group with
the quota of one core, with the default number of threads, and with `--threads 1` (needs permission
to make control groups).
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
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.cli.local_pair import share_cores
from outrider.cli.processes import running_system
from outrider.client.client import Client
from outrider.cores import available_cores
from outrider.engine.scheduling.threads import AdaptiveThreads
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
CGROUP = Path("/sys/fs/cgroup")


class System:
    """The pair and its orchestrator, as `up` starts them, or the target without a draft."""

    def __init__(self, stack: ExitStack, has_draft: bool = True, **settings: Any) -> None:
        models: list[dict[str, Any]] = [{"threads": None}, {"threads": None}]
        share_cores(*models)
        common = {"port": 0, "slots": 2}
        address, self.processes = stack.enter_context(
            running_system(
                {**models[0], **common, **settings},
                {**models[1], **common, "model": "default", **settings} if has_draft else None,
                {"port": 0},
            )
        )
        self.client = stack.enter_context(Client(address))

    def text(self, prompt: str, num_tokens: int, **fields: Any) -> tuple[float, int]:
        """Milliseconds of a token after the first, and the target's threads."""
        message = [{"role": "user", "content": prompt}]
        answer = self.client.generate(message, max_new_tokens=num_tokens, ignore_eos=True, **fields)
        return answer.latency.tpot_ns / 1e6, answer.num_target_threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--fixed-texts", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--no-quota", action="store_true")
    args = parser.parse_args()
    prompts = read_prompts(None)[: NUM_TEXTS + 1]
    figures = busy_machine(prompts, args)
    if not args.no_quota:
        figures["quota_of_one_core"] = quota(prompts, args.max_new_tokens)
    print(write_result("busy", vars(args), **figures))


def busy_machine(prompts: list[str], args: argparse.Namespace) -> dict[str, Any]:
    num_tokens = args.max_new_tokens
    cost = cost_of_adapting(args.rounds * prompts, num_tokens)
    with ExitStack() as stack:
        adaptive = System(stack)
        fixed = System(stack, no_adapt_threads=True)
        quiet = sequential([adaptive, fixed], prompts, num_tokens)
        figures: dict[str, Any] = {
            "quiet": {"adaptive_ms": quiet[0], "fixed_ms": quiet[1]},
            "cost_of_adapting": cost,
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


def cost_of_adapting(prompts: list[str], num_tokens: int) -> dict[str, float]:
    """The cost on a quiet machine, of targets without drafts, since policies would differ.

    Two with fixed threads show how much targets that are alike differ.
    """
    with ExitStack() as stack:
        ways = [{}, {"no_adapt_threads": True}, {"no_adapt_threads": True}]
        targets = [System(stack, has_draft=False, **way) for way in ways]
        adaptive, fixed, again = sequential(targets, prompts, num_tokens)
    return {
        "adaptive_ms": adaptive,
        "fixed_ms": fixed,
        "fixed_again_ms": again,
        "measured": round(2 * adaptive / (fixed + again) - 1, 4),
        "computed": round(2e3 * seconds_of_adapting() / (fixed + again), 6),
    }


def seconds_of_adapting(num_passes: int = 10_000) -> float:
    """The time to note a pass, and to see whether a change is due."""
    chosen = AdaptiveThreads({2: 0.02, 1: 0.03}, current=2)
    began = time.perf_counter()
    for _ in range(num_passes):
        chosen.change(between_texts=False)
        chosen.observe(5, 0.02)
    return (time.perf_counter() - began) / num_passes


def sequential(
    systems: list[System], prompts: list[str], num_tokens: int, **fields: Any
) -> list[float]:
    """Medians of milliseconds a token, prompt by prompt; the systems take turns in being first."""
    times: list[list[float]] = [[] for _ in systems]
    for number, prompt in enumerate(prompts):
        for place in range(len(systems)):
            at = (number + place) % len(systems)
            times[at].append(systems[at].text(prompt, num_tokens, **fields)[0])
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


def quota(prompts: list[str], num_tokens: int) -> dict[str, Any]:
    """With a quota of one core: the default number of threads, and `--threads 1`."""
    num_cores = available_cores()
    with one_core(), ExitStack() as stack:
        by_default = System(stack)
        one = System(stack, threads=1)
        default_ms, one_ms = sequential([by_default, one], 2 * prompts, num_tokens)
    figures = {"cores": num_cores, "default_ms": default_ms, "one_thread_ms": one_ms}
    figures["default_to_one_thread"] = round(default_ms / one_ms, 3)
    print(figures)
    return figures


@contextmanager
def one_core() -> Iterator[None]:
    """Gives this process and its children the quota of one core (control groups 1 or 2)."""
    is_second = (CGROUP / "cgroup.controllers").exists()
    parent = CGROUP if is_second else CGROUP / "cpu"
    group = parent / f"outrider-{os.getpid()}"
    group.mkdir()
    try:
        if is_second:
            (parent / "cgroup.subtree_control").write_text("+cpu")
            (group / "cpu.max").write_text("100000 100000")
        else:
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("100000")
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


if __name__ == "__main__":
    main()
