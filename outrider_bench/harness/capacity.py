"""Capacity: the tokens per second of a pair with many sessions."""

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from outrider_bench.harness.stand import Legs, Stand
from outrider_bench.runs import Task, Way

# Texts at each number of sessions; with few, the figure says more of the texts than of the system.
FEWEST_TEXTS = 8

ALONE, ONE_HOST, TWO_HOSTS = "target only", "both on the target's host", "two hosts"


def measure(
    stand: Stand, tasks: Sequence[Task], levels: Sequence[int], looks_up: bool
) -> dict[str, dict[int, float]]:
    """Tokens a second of all sessions together, by system and number of sessions.

    Each session asks for another text as soon as it has one. The texts are the same for all
    systems, `FEWEST_TEXTS` at least.
    """
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
        numbers = itertools.count(1)
        for level in levels:
            texts = list(itertools.islice(itertools.cycle(tasks), max(level, FEWEST_TEXTS)))
            for name, way in systems.items():
                stand.progress(f"{level} sessions · {name}")
                speed = tokens_per_second(way, unread(texts, numbers), level)
                found[name][level] = round(speed, 2)
    return found


def unread(tasks: Sequence[Task], numbers: Iterator[int]) -> list[Task]:
    """The tasks at temperature 1, with prompts that all begin differently.

    The target does not read a prefix twice, so the first system would have read it for the others.
    """
    return [
        dataclasses.replace(task, prompt=f"{number:04}: {task.prompt}", temperature=1.0, seed=seed)
        for seed, (task, number) in enumerate(zip(tasks, numbers, strict=False))
    ]


def tokens_per_second(way: Way, tasks: Sequence[Task], num_sessions: int) -> float:
    """The rate of `num_sessions` sessions together, until all tasks are done."""
    with ThreadPoolExecutor(num_sessions) as executor:
        began = time.perf_counter()
        runs = list(executor.map(way, tasks))
        seconds = time.perf_counter() - began
    return sum(len(run.token_ids) for run in runs) / seconds
