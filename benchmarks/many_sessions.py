"""Many sessions at once: throughput, a long prompt among others, and overload.

    python -m benchmarks.many_sessions [--draft default] [--parts throughput,prompt,overload]

- throughput: tokens per second of all sessions together, 1 and 16 at a time, alternately the
  target alone and with speculation; each session makes two requests
- prompt: the gaps between the messages of 8 streams, without and with a prompt of 1,500
  tokens that arrives among them
- overload: four times as many requests as the services can answer: what is accepted
  and correct, how soon the rest is refused, health and memory meanwhile

Outputs are compared: one in four with the target alone, one at a time, the others with
the first answer to the same request.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider.cli.processes import ServiceProcess, running_system
from outrider.protocol.channel import CHANNEL_OPTIONS, from_rpc_error
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc as pb_grpc
from outrider_bench.output.results_file import write_result

NUM_SESSIONS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draft", default="default", help="as for the draft service, or none")
    parser.add_argument("--threads", type=int, default=1, help="of the target; the draft has one")
    parser.add_argument("--dtype", default="float32", help="of the target")
    parser.add_argument("--parts", default="throughput,prompt,overload")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of the throughput part")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    parser.add_argument("--name", default="many_sessions", help="of the result's file")
    args = parser.parse_args()
    draft = {"model": args.draft, "threads": 1, "port": 0, "slots": NUM_SESSIONS}
    with running_system(
        {"threads": args.threads, "dtype": args.dtype, "port": 0, "slots": NUM_SESSIONS},
        None if args.draft == "none" else draft,
        {"port": 0, "max_queued": 2 * NUM_SESSIONS, "max_queue_seconds": 600},
    ) as (address, processes):
        figures = asyncio.run(measure(address, processes, args))
    print(write_result(args.name, vars(args), figures=figures))


async def measure(
    address: str, processes: Sequence[ServiceProcess], args: argparse.Namespace
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        load = Load(channel)
        parts = {
            "throughput": lambda: throughput(load, args.max_new_tokens, args.rounds),
            "prompt": lambda: long_prompt(load),
            "overload": lambda: overload(load, processes, args.seconds),
        }
        for name in args.parts.split(","):
            figures[name] = await parts[name]()
            print(name, json.dumps(figures[name], indent=1))
        figures["outputs_that_differ_from_target_alone"] = load.num_different
    return figures


class Load:
    """Requests to the orchestrator, and their expected answers."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = pb_grpc.GenerationServiceStub(channel)
        text = (files("outrider_bench") / "prompts.txt").read_text(encoding="utf-8")
        self.prompts = text.splitlines()[:NUM_SESSIONS]
        self.num_different = 0
        self._expected: dict[bytes, list[int]] = {}

    def request(self, index: int, num_tokens: int, k: int | None) -> pb.GenerateRequest:
        turn = pb.ChatMessage(role="user", content=self.prompts[index % NUM_SESSIONS])
        return pb.GenerateRequest(
            messages=[turn], max_new_tokens=num_tokens, num_speculative_tokens=k, ignore_eos=True
        )

    async def expect(self, num_tokens: int) -> None:
        """Asks for some texts of the target alone, one at a time."""
        for index in range(0, NUM_SESSIONS, 4):
            request = self.request(index, num_tokens, 0)
            response = await self.stub.Generate(request)
            self._expected[_key(request)] = list(response.token_ids)

    def compare(self, request: pb.GenerateRequest, token_ids: Sequence[int]) -> None:
        """With the target alone; a text that was not asked for, with its first answer."""
        expected = self._expected.setdefault(_key(request), list(token_ids))
        self.num_different += list(token_ids) != expected

    async def generate(self, index: int, num_tokens: int, k: int | None) -> pb.GenerateResponse:
        request = self.request(index, num_tokens, k)
        response = await self.stub.Generate(request)
        self.compare(request, response.token_ids)
        return response

    async def gaps(self, index: int, num_tokens: int) -> list[tuple[float, float]]:
        """Of a stream: when each message came (s), and after what time (ms) since the last."""
        times = []
        async for message in self.stub.GenerateStream(self.request(index, num_tokens, None)):
            if message.pieces:
                times.append(time.perf_counter())
        return [(now, (now - last) * 1e3) for last, now in itertools.pairwise(times)]


def _key(request: pb.GenerateRequest) -> bytes:
    """The same with any draft length: so is the text."""
    request = pb.GenerateRequest.FromString(request.SerializeToString())
    request.ClearField("num_speculative_tokens")
    return request.SerializeToString(deterministic=True)


async def throughput(load: Load, num_tokens: int, rounds: int) -> dict[str, Any]:
    await load.expect(num_tokens)
    ways = {
        "1 session, target alone": (1, 0),
        "16 sessions, target alone": (NUM_SESSIONS, 0),
        "16 sessions, speculation": (NUM_SESSIONS, None),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    await asyncio.gather(*(load.generate(i, 8, None) for i in range(NUM_SESSIONS)))  # warm up
    for _ in range(rounds):
        for name, (count, k) in ways.items():
            began = time.perf_counter()
            await asyncio.gather(*(_series(load, i, num_tokens, k) for i in range(count)))
            rates[name].append(2 * count * num_tokens / (time.perf_counter() - began))
            print(f"{name}: {rates[name][-1]:.1f} tokens/s", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    one, many, speculating = medians.values()
    return {
        "tokens_per_second": {name: round(rate, 1) for name, rate in medians.items()},
        "16 sessions vs 1, target alone": round(many / one, 2),
        "speculation vs target alone, 16 sessions": round(speculating / many, 3),
        "rounds": {name: [round(rate, 1) for rate in values] for name, values in rates.items()},
    }


async def _series(load: Load, index: int, num_tokens: int, k: int | None) -> None:
    """Two requests, one after the other: sessions come and go while others run."""
    for number in (index, index + 1):
        await load.generate(number, num_tokens, k)


async def long_prompt(load: Load) -> dict[str, Any]:
    """8 streams; in the second half of their time a long prompt arrives."""
    prompt = " the" * 1_500
    streams = [asyncio.create_task(load.gaps(i, 160)) for i in range(8)]
    await asyncio.sleep(5)
    arrived = time.perf_counter()
    request = pb.GenerateRequest(prompt=prompt, max_new_tokens=2, num_speculative_tokens=0)
    response = await load.stub.Generate(request)
    done = time.perf_counter()
    gaps = [gap for stream in await asyncio.gather(*streams) for gap in stream]
    before = [ms for at, ms in gaps if arrived - 4 < at < arrived]
    during = [ms for at, ms in gaps if arrived < at < done]
    median = statistics.median(before)
    return {
        "num_prompt_tokens": response.usage.num_prompt_tokens,
        "first_token_ms_of_long_prompt": round(response.latency.ttft_ns / 1e6),
        "gap_ms_before": {"median": round(median, 1), "worst": round(max(before), 1)},
        "gap_ms_during": {
            "median": round(statistics.median(during), 1),
            "worst": round(max(during), 1),
        },
        "rise_of_worst_gap_in_medians": round((max(during) - max(before)) / median, 2),
        "num_gaps": [len(before), len(during)],
    }


async def overload(
    load: Load, processes: Sequence[ServiceProcess], seconds: float, num_tokens: int = 16
) -> dict[str, Any]:
    await load.expect(num_tokens)
    capacity = await _capacity(load, num_tokens)
    watch = asyncio.create_task(_watch(processes, seconds))
    tasks = []
    began = time.perf_counter()
    for number in range(int(4 * capacity * seconds)):
        await asyncio.sleep(max(0.0, began + number / (4 * capacity) - time.perf_counter()))
        tasks.append(asyncio.create_task(_one(load, number, num_tokens)))
    outcomes = await asyncio.gather(*tasks)
    health_ms, memory_mb, all_serving = await watch
    refused = [ms for reason, ms in outcomes if reason == "QUEUE_FULL"]
    reasons = {reason for reason, _ in outcomes}
    return {
        "capacity_requests_per_second": round(capacity, 2),
        "requests": {r or "answered": sum(o[0] == r for o in outcomes) for r in sorted(reasons)},
        "refused_after_ms": _spread(refused),
        "health": {
            "always_serving": all_serving,
            "ms": {name: _spread(values) for name, values in health_ms.items()},
        },
        "memory_mb_each_10_s": memory_mb[:: max(1, len(memory_mb) // 6)],
        "memory_growth_after_10_s_mb": [
            max(later) - now for now, *later in zip(*memory_mb[10:], strict=True)
        ],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not (ordered := sorted(values)):
        return {}
    return {
        "median": statistics.median(ordered),
        "p99": ordered[len(ordered) * 99 // 100],
        "worst": ordered[-1],
    }


async def _capacity(load: Load, num_tokens: int) -> float:
    """Requests per second with all slots busy."""
    began = time.perf_counter()
    count = 3 * NUM_SESSIONS
    await asyncio.gather(*(load.generate(i, num_tokens, None) for i in range(count)))
    return count / (time.perf_counter() - began)


async def _one(load: Load, number: int, num_tokens: int) -> tuple[str, float]:
    """The reason of the refusal, empty if there was none, and the time it took in ms."""
    began, reason = time.perf_counter(), ""
    try:
        await load.generate(number, num_tokens, None)
    except grpc.aio.AioRpcError as error:
        reason = from_rpc_error(error).reason
    return reason, round((time.perf_counter() - began) * 1e3, 1)


async def _watch(
    processes: Sequence[ServiceProcess], seconds: float
) -> tuple[dict[str, list[float]], list[list[int]], bool]:
    """Health checks of each service, ten a second, and its memory, once a second."""
    health_ms: dict[str, list[float]] = {process.name: [] for process in processes}
    memory_mb, all_serving = [], True
    async with AsyncExitStack() as stack:
        stubs: dict[str, Any] = {}
        for process in processes:
            channel = grpc.aio.insecure_channel(process.address)
            await stack.enter_async_context(channel)
            stubs[process.name] = health_pb2_grpc.HealthStub(channel)
        for tick in range(int(10 * seconds)):
            began = time.perf_counter()
            for name, stub in stubs.items():
                asked = time.perf_counter()
                answer = await stub.Check(health_pb2.HealthCheckRequest())
                health_ms[name].append(round((time.perf_counter() - asked) * 1e3, 1))
                all_serving &= answer.status == health_pb2.HealthCheckResponse.SERVING
            if tick % 10 == 0:
                memory_mb.append([_memory_mb(process.pid) for process in processes])
            await asyncio.sleep(max(0.0, 0.1 - (time.perf_counter() - began)))
    return health_ms, memory_mb, all_serving


def _memory_mb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0


if __name__ == "__main__":
    main()
