"""How many tokens a second a pair gives when many ask at once."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from outrider_bench.runs import Task, Way
from outrider_bench.stand import Legs, Stand

ALONE, ONE_HOST, TWO_HOSTS = "target only", "both on the target's host", "two hosts"


def measure(
    stand: Stand, tasks: Sequence[Task], levels: Sequence[int], looks_up: bool
) -> dict[str, dict[int, float]]:
    """Tokens a second of all sessions together, by system and number of sessions."""
    with stand.section() as stack:
        second = stand.begin_draft(stack, stand.models.draft, on_target_host=True)
        legs = {ONE_HOST: Legs(second.wait_until_ready()), TWO_HOSTS: Legs(stand.draft_address)}
        systems = {ALONE: stand.over_grpc(stand.alone, 0)} | {
            name: stand.over_grpc(client, prompt_lookup=looks_up)
            for name, client in stand.orchestrators(stack, legs).items()
        }
        for way in systems.values():
            way(tasks[0])
        found: dict[str, dict[int, float]] = {name: {} for name in systems}
        every = numbered(tasks)
        for level in levels:
            for name, way in systems.items():
                stand.progress(f"{level} sessions · {name}")
                each = list(itertools.islice(every, level))
                found[name][level] = round(tokens_per_second(way, each), 2)
    return found


def numbered(tasks: Sequence[Task]) -> Iterator[Task]:
    """The tasks again and again, each time with a prompt that begins in another way.

    What the target has read once it need not read again, and whoever asked first would have read
    it for the others.
    """
    for number in itertools.count(1):
        task = tasks[number % len(tasks)]
        prompt = f"{number:04}: {task.prompt}"
        yield dataclasses.replace(task, prompt=prompt, temperature=1.0, seed=number)


def tokens_per_second(way: Way, each: Sequence[Task]) -> float:
    """Of sessions that begin at the same time and are equally long."""
    with ThreadPoolExecutor(len(each)) as executor:
        began = time.perf_counter()
        runs = list(executor.map(way, each))
        seconds = time.perf_counter() - began
    return sum(len(run.token_ids) for run in runs) / seconds
