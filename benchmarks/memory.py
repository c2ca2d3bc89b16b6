"""The memory of the three services as `outrider up` starts them: idle, and with sessions.

    python -m benchmarks.memory [--slots 16] [--cached-tokens N] [--sessions 16] [--tokens 2000]

Proportional set sizes (PSS: pages that processes share are divided among them), from
`/proc/PID/smaps_rollup`, of the default pair: after the start, with so many sessions that hold so
many tokens each, and after these have ended.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from outrider.cli.local_pair import share_cores
from outrider.cli.processes import ServiceProcess, running_system
from outrider.protocol.channel import CHANNEL_OPTIONS
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc as pb_grpc
from outrider_bench.output.results_file import write_result

SETTLING_SECONDS = 2.0  # sessions of the draft end after the text

KINDS = ("Pss", "Pss_Anon", "Pss_File")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=2000, help="of each session")
    parser.add_argument("--slots", type=int, help="of both services; default: theirs")
    parser.add_argument("--cached-tokens", type=int, help="as for both services")
    parser.add_argument("--name", default="memory", help="of the result's file")
    args = parser.parse_args()
    figures = pair(args)
    print(figures)
    print(write_result(args.name, vars(args), pss_mb=figures))


def pss_mb(pid: int) -> dict[str, int]:
    """In MB (10^6 bytes): all of it, what is private to processes, and mapped files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return {kind: int(fields[kind]) * 1024 // 10**6 for kind in KINDS}


def pair(args: argparse.Namespace) -> dict[str, Any]:
    """Of each service and in all: idle, at the most while sessions run, and afterwards."""
    limits = {"slots": args.slots, "cached_tokens": args.cached_tokens}
    target: dict[str, Any] = {"threads": None, "port": 0, **limits}
    draft: dict[str, Any] = {"threads": None, "port": 0, **limits}
    share_cores(target, draft)
    with running_system(target, draft, {"port": 0}) as (address, processes):
        idle = of_each(processes)
        most = asyncio.run(watched(address, processes, args.sessions, args.tokens))
        time.sleep(SETTLING_SECONDS)
        return {"idle": idle, "with sessions": most, "afterwards": of_each(processes)}


def of_each(processes: Sequence[ServiceProcess]) -> dict[str, Any]:
    figures = {process.name: pss_mb(process.pid) for process in processes}
    return {"sum": sum(each["Pss"] for each in figures.values()), **figures}


async def watched(
    address: str, processes: Sequence[ServiceProcess], num_sessions: int, num_tokens: int
) -> dict[str, Any]:
    """The most that the services take, four times a second, while sessions run."""
    running = asyncio.create_task(run_sessions(address, num_sessions, num_tokens))
    samples = []
    while not running.done():
        samples.append(of_each(processes))
        await asyncio.wait([running], timeout=0.25)
    await running
    return max(samples, key=lambda sample: sample["sum"])


async def run_sessions(address: str, num_sessions: int, num_tokens: int) -> None:
    """Texts that begin alike, so that most of their tokens are copied: they fill slots, too."""
    num_new = 32
    request = pb.GenerateRequest(
        prompt=" the" * (num_tokens - num_new),
        max_new_tokens=num_new,
        num_speculative_tokens=4,
        ignore_eos=True,
    )
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub: Any = pb_grpc.GenerationServiceStub(channel)
        await stub.Generate(request)
        await asyncio.gather(*(stub.Generate(request) for _ in range(num_sessions)))


if __name__ == "__main__":
    main()
