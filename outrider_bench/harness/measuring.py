"""A whole run: the plan, the measurement, and the costs of draft lengths."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from outrider_bench.harness import sections
from outrider_bench.harness.hosts import Hosts, available_cores
from outrider_bench.harness.prompts import spread
from outrider_bench.harness.stand import Models, Stand
from outrider_bench.models.costs import cost_table
from outrider_bench.models.figures import TARGET_ONLY
from outrider_bench.runs import Task

_SEED = 1


def plan_of(
    lines: Sequence[str],
    num_prompts: int | None,
    curve_prompts: int | None,
    max_new_tokens: int | None,
    quick: bool,
) -> sections.Plan:
    """The plan of a run; the defaults depend on `quick`."""
    length = max_new_tokens or (12 if quick else 32)

    def tasks(count: int) -> list[Task]:
        return [Task(line, length, seed=_SEED) for line in spread(lines, count)]

    points: dict[str, Any] = {}
    if quick:
        points = {
            "rtts_ms": (20.0,),
            "lengths": (1, 4),
            "acceptances": (0.8,),
            "sessions": (1, 4),
        }
    of_table, of_curves = num_prompts or (2 if quick else 8), curve_prompts or (1 if quick else 3)
    return sections.Plan(tasks(of_table), tasks(of_curves), **points)


def measure(
    models: Models, plan: sections.Plan, names: Sequence[str], console: Console
) -> dict[str, Any]:
    """Runs the sections. Raises OutriderError."""
    hosts = Hosts.of(models.threads, available_cores())
    with console.status("starting") as status, Stand(models, hosts, status.update) as stand:
        found, seconds = sections.run(stand, plan, names)
        served = {"target": asdict(stand.info.target), "draft": stand.draft_info()}
    settings = {
        "models": asdict(models),
        "served": served,
        "hosts": str(hosts),
        "num_predrafts": stand.info.default_num_predrafts,
        "plan": asdict(plan)
        | {part: [t.prompt for t in getattr(plan, part)] for part in ("tasks", "curve_tasks")},
        "max_new_tokens": plan.tasks[0].max_new_tokens,
        "seconds": seconds,
        "assisted": "transformers has the draft's weights in the target's precision",
    }
    document: dict[str, Any] = {"settings": settings, "sections": found}
    if lengths := found.get("lengths"):
        document["costs"] = cost_table(lengths[sections.SEQUENTIAL], lengths[TARGET_ONLY])
    return document
