"""What a step costs outside the models: a pair whose passes take little time.

    python -m benchmarks.step_overhead [--rounds 8] [--max-new-tokens 200]

The three services run as processes; the models are a toy of two layers, one thread. A step drafts
four tokens, of which all are accepted, sequentially or from predrafts, for one text or eight at a
time.

- step: from one message to the next, as the client gets them
- models: the forward passes and choices of tokens that a step waits for
- overhead: what is left of a sequential step
- stages of a step, from the traces of other texts; `verify pass` of the target alone is the fixed
  cost of a pass, with one token and its choice; `stream` is all between the orchestrator's
  session and the service's handler, `queue` the way to the engine's thread, and `handler` all else
  that the service does: the way back, and between passes
- bare: two ping-pongs on bare grpc.aio streams, with as many bytes, to two processes, and gRPC as
  it is by itself, with as long a pause before each as the service takes for its message: what
  has been idle for some tenths of a millisecond takes twice as long; `hot` without pauses
- policy: one decision and one observation of the adaptive policy

All take turns in each round.
"""

import argparse
import asyncio
import itertools
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import uvloop

from benchmarks.support.ping_pong import Streams
from benchmarks.support.random_models import build, toy_config
from benchmarks.support.step_stages import steps_of
from orchestrator.policy.adaptive import AdaptivePolicy
from orchestrator.policy.cost_model import PairState
from orchestrator.policy.draft_policy import StepContext
from orchestrator.step import DraftSource, DraftState, StepRecord
from outrider.cli.processes import ServiceProcess, running_system
from outrider.protocol.channel import open_channel
from outrider.protocol.codec import proposal_to_wire, verify_result_to_wire
from outrider.protocol.messages import Proposal, Timings, VerifyResult
from outrider.v1 import draft_pb2, generation_pb2, target_pb2
from outrider.v1.generation_pb2_grpc import GenerationServiceStub
from outrider_bench.output.results_file import write_result

NUM_DRAFT_TOKENS = 4
NUM_SESSIONS = 8
PROMPT = "ABCDEFGHIJKLMNOP"

# The settings of a request in each way, and how many texts there are at a time.
WAYS: dict[str, tuple[dict[str, int], int]] = {
    "target alone": ({"num_speculative_tokens": 0}, 1),
    "sequential": ({"num_speculative_tokens": NUM_DRAFT_TOKENS, "num_predrafts": 0}, 1),
    "predrafted": ({"num_speculative_tokens": NUM_DRAFT_TOKENS}, 1),
    f"sequential, {NUM_SESSIONS} sessions": (
        {"num_speculative_tokens": NUM_DRAFT_TOKENS, "num_predrafts": 0},
        NUM_SESSIONS,
    ),
    f"predrafted, {NUM_SESSIONS} sessions": (
        {"num_speculative_tokens": NUM_DRAFT_TOKENS},
        NUM_SESSIONS,
    ),
}

Samples = defaultdict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--name", default="step_overhead", help="of the result's file")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # for processes of this package
    with TemporaryDirectory() as folder, ExitStack() as stack:
        toy = build(toy_config(), Path(folder), "float32", "cpu", "toy", decides=True)
        settings = {"model": toy, "threads": 1, "slots": 2 * NUM_SESSIONS, "port": 0}
        draft = {**settings, "min_confidence": 0}
        address, _ = stack.enter_context(running_system(settings, draft, {"port": 0}))
        bare = [stack.enter_context(bare_server(answer)) for _, answer in messages()]
        figures = uvloop.run(measure(address, bare, args.rounds, args.max_new_tokens))
    print(write_result(args.name, vars(args), figures=figures))


@contextmanager
def bare_server(answer: bytes) -> Iterator[str]:
    with ServiceProcess("benchmarks.support.ping_pong", [str(len(answer))]) as server:
        yield server.wait_until_ready()


def messages() -> list[tuple[bytes, bytes]]:
    """Request and answer of a step's proposal, and of its verification."""
    timings = Timings(10_000, 1_000_000, 50_000, 1_200_000, 5, 1, 1)
    tokens = (40, 41, 42, 43)
    pairs: list[tuple[Any, Any]] = [
        (
            draft_pb2.ProposeRequest(
                context_length=300, token_ids=(38, 39), num_speculative_tokens=4
            ),
            proposal_to_wire(Proposal(302, tokens, 305, timings), 302, 1_200_000),
        ),
        (
            target_pb2.VerifyRequest(context_length=301, token_ids=(39,), draft_token_ids=tokens),
            verify_result_to_wire(VerifyResult(302, 4, 44, True, 306, timings)),
        ),
    ]
    return [(one.SerializeToString(), other.SerializeToString()) for one, other in pairs]


async def measure(
    address: str, bare: Sequence[str], rounds: int, num_tokens: int
) -> dict[str, Any]:
    found: defaultdict[str, Samples] = defaultdict(lambda: defaultdict(list))
    requests = [request for request, _ in messages()]
    async with Streams(bare) as streams:
        channel = open_channel(grpc.aio, address)
        system = System(channel, num_tokens)
        for number in range(rounds + 1):
            if number == 1:  # the first round is to warm up
                found.clear()
            for way in WAYS:
                await system.run(way, found[way])
            pauses = [service_seconds(found["sequential"], each) for each in ("draft", "verify")]
            found["bare"]["step"] += await streams.round_trips(requests, num_tokens, pauses)
            found["bare, hot"]["step"] += await streams.round_trips(requests, num_tokens, (0, 0))
            found["policy"]["step"] += policy_times()
        await channel.close()
    figures = {
        name: {what: spread(ms) for what, ms in samples.items()} for name, samples in found.items()
    }
    report(figures)
    return {"ms": figures, "ratios": ratios(figures)}


class System:
    """The three services, by their orchestrator."""

    def __init__(self, channel: Any, num_tokens: int) -> None:
        self._stub: Any = GenerationServiceStub(channel)
        self._num_tokens = num_tokens

    async def run(self, way: str, samples: Samples) -> None:
        """Texts for the times between messages, and others for the stages."""
        settings, num_texts = WAYS[way]
        for gaps in await asyncio.gather(*(self._gaps(settings) for _ in range(num_texts))):
            samples["step"] += gaps
        traces = await asyncio.gather(*(self._trace(settings) for _ in range(num_texts)))
        for trace in traces:
            for step in steps_of(trace):
                for stage, ms in step.items():
                    samples[stage].append(ms)

    def _request(self, settings: Mapping[str, int], trace: bool) -> generation_pb2.GenerateRequest:
        return generation_pb2.GenerateRequest(
            prompt=PROMPT, max_new_tokens=self._num_tokens, trace=trace, **settings
        )

    async def _gaps(self, settings: Mapping[str, int]) -> list[float]:
        times = []
        async for message in self._stub.GenerateStream(self._request(settings, trace=False)):
            if message.pieces:
                times.append(time.perf_counter())
        return [1e3 * (after - before) for before, after in itertools.pairwise(times[1:])]

    async def _trace(self, settings: Mapping[str, int]) -> Sequence[Any]:
        last = None
        async for message in self._stub.GenerateStream(self._request(settings, trace=True)):
            last = message
        assert last is not None
        return list(last.result.trace)


def service_seconds(stages: Mapping[str, Sequence[float]], service: str) -> float:
    """The time that a service takes for a message."""
    parts = [stages[f"{service} {part}"] for part in ("queue", "pass", "handler")]
    return sum(map(statistics.median, parts)) / 1e3


def policy_times(num_steps: int = 200) -> list[float]:
    """Milliseconds of a decision and an observation."""
    pair = PairState()
    policy = AdaptivePolicy(pair)
    times = []
    for number in range(num_steps):
        hit = number % 3 > 0
        step = StepRecord(
            token_ids=(1, 2, 3),
            num_draft_tokens=4,
            num_accepted_tokens=2,
            source=DraftSource.CACHED if hit else DraftSource.DRAFTED,
            draft_state=DraftState.ACTIVE,
            is_cache_miss=not hit,
            draft_ns=0 if hit else 4_000_000,
            verify_ns=10_000_000,
            server_ns=9_500_000,
            batch_tokens=5,
        )
        began = time.perf_counter()
        policy.decide(StepContext(DraftState.ACTIVE))
        policy.observe(step)
        times.append(1e3 * (time.perf_counter() - began))
    return times


def spread(ms: Sequence[float]) -> dict[str, float]:
    ordered = sorted(ms)
    return {
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[len(ordered) * 99 // 100], 3),
    }


def ratios(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """The overhead of a sequential step (p50), and that over the bare ping-pongs."""
    step = figures["sequential"]
    overhead = step["step"]["p50"] - step["models"]["p50"]
    return {
        "overhead_ms": round(overhead, 3),
        "over_bare": round(overhead / figures["bare"]["step"]["p50"], 2),
    }


def report(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    for name, stages in figures.items():
        print(
            f"{name}:",
            *(f"{what} {ms['p50']:.3f} ({ms['p99']:.3f})" for what, ms in stages.items()),
            sep="\n  ",
        )
    print(ratios(figures))


if __name__ == "__main__":
    main()
