"""Tasks, and ways to generate their texts, which are measured side by side."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from outrider.client.client import Client
from outrider.client.request import Prompt
from outrider.client.results import Generation
from outrider.errors import ContextTooLong


@dataclass(frozen=True, slots=True)
class Task:
    """A text that every way generates."""

    prompt: str
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """A generation and its times as its caller saw them.

    `ms_per_token` counts from the first token on (TPOT); `report` is that of our
    services.
    """

    token_ids: Sequence[int]
    first_token_ms: float
    ms_per_token: float
    report: Generation | None = None


# A policy learns within a few steps.
_WARM_UP_TOKENS = 16

Way = Callable[[Task], Run]


@dataclass(frozen=True)
class OverGrpc:
    """A way through an orchestrator. None leaves lengths and predrafts to its policy."""

    client: Client
    is_chat: bool
    num_speculative_tokens: int | None = None
    num_predrafts: int | None = None
    prompt_lookup: bool | None = None

    def __call__(self, task: Task) -> Run:
        """Raises OutriderError."""
        prompt: Prompt = task.prompt
        if self.is_chat:
            prompt = [{"role": "user", "content": task.prompt}]
        began = time.perf_counter()
        report = self.client.generate(
            prompt,
            max_new_tokens=task.max_new_tokens,
            temperature=task.temperature,
            seed=task.seed,
            num_speculative_tokens=self.num_speculative_tokens,
            num_predrafts=self.num_predrafts,
            prompt_lookup=self.prompt_lookup,
            ignore_eos=True,
        )
        wall_ms = (time.perf_counter() - began) * 1e3
        first_ms = report.latency.ttft_ns / 1e6
        later_tokens = len(report.token_ids) - 1
        return Run(report.token_ids, first_ms, (wall_ms - first_ms) / max(1, later_tokens), report)


def interleave(
    ways: Mapping[str, Way], tasks: Sequence[Task], progress: Callable[[str], None]
) -> list[dict[str, Run]]:
    """Runs of every task by every way, task by task, after a run of each to warm up.

    Every other task has the ways in reverse order, so that none is always first.

    Raises:
        ContextTooLong: a text is shorter than asked for, so that its times are not comparable.
        OutriderError: a way failed.
    """
    length = tasks[-1].max_new_tokens
    for name, way in ways.items():
        progress(f"warm-up · {name}")
        way(dataclasses.replace(tasks[-1], max_new_tokens=min(_WARM_UP_TOKENS, length)))
    rows = []
    for number, task in enumerate(tasks):
        row = {}
        for name in list(ways)[:: -1 if number % 2 else 1]:
            progress(f"prompt {number + 1} of {len(tasks)} · {name}")
            row[name] = _checked(name, task, ways[name](task))
        rows.append({name: row[name] for name in ways})
    return rows


def _checked(name: str, task: Task, run: Run) -> Run:
    if len(run.token_ids) != task.max_new_tokens:
        raise ContextTooLong(
            f"{name}: {len(run.token_ids)} instead of {task.max_new_tokens} tokens "
            f"after {task.prompt[:40]!r}: the context is too short for it"
        )
    return run
