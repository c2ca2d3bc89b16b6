"""The trace of a request: who worked when, drawn so that it fits together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from outrider.client.results import Generation, generation_from_wire
from outrider.protocol.messages import Interval
from tests.support.system import running_system


async def traced(target: Path, draft: Path, **fields: Any) -> Generation:
    async with running_system(target, draft) as system:
        response = await system.generate(
            "the cat sat on the mat", max_new_tokens=40, ignore_eos=True, **fields
        )
    return generation_from_wire(response)


def lanes(intervals: Iterable[Interval]) -> dict[tuple[str, str], list[Interval]]:
    found = defaultdict(list)
    for one in sorted(intervals, key=lambda one: (one.begin_ns, -one.duration_ns)):
        found[one.track, one.lane].append(one)
    return found


def end_ns(one: Interval) -> int:
    return one.begin_ns + one.duration_ns


async def test_every_part_of_the_system_has_its_track(tiny_models: Callable[..., Path]) -> None:
    llama = tiny_models("llama")
    generation = await traced(llama, llama, trace=True, num_speculative_tokens=3)
    found = lanes(generation.trace)
    assert {track for track, _ in found} == {"orchestrator", "network", "draft", "target"}
    # What Perfetto can draw: an interval lies within another of its lane, or apart from it.
    for intervals in found.values():
        for before, after in pairwise(intervals):
            assert end_ns(after) <= end_ns(before) or end_ns(before) <= after.begin_ns
    # The picture and the report are of the same request.
    path = found["orchestrator", "critical path"]
    assert sum(one.duration_ns for one in path) == generation.latency.wall_ns
    verified = [one for one in found["target", "session"] if one.name == "verify"]
    assert len(verified) == generation.speculation.num_steps
    accepted = sum(one.counts["accepted_tokens"] for one in verified)
    assert accepted == generation.speculation.num_accepted_tokens
    steps = found["orchestrator", "steps"]
    assert sum(one.counts["accepted_tokens"] for one in steps) == accepted


async def test_what_is_predrafted_shows_behind_the_verification(
    tiny_models: Callable[..., Path],
) -> None:
    llama = tiny_models("llama")
    generation = await traced(llama, llama, trace=True, num_speculative_tokens=1)
    found = lanes(generation.trace)
    assert generation.speculation.num_predrafted_tokens > 0
    assert ("draft", "predrafts 1") in found
    sequential = await traced(llama, llama, trace=True, num_speculative_tokens=1, num_predrafts=0)
    assert ("draft", "predrafts 1") not in lanes(sequential.trace)


async def test_without_asking_there_is_no_trace(tiny_models: Callable[..., Path]) -> None:
    generation = await traced(tiny_models("llama"), tiny_models("llama"))
    assert generation.trace == []
