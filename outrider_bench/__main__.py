"""`outrider bench`: measures the pair beside its baselines."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from outrider.config import DTYPES, run_service
from outrider.errors import ConfigurationError
from outrider.html_report import write_page
from outrider_bench import sections
from outrider_bench.conclusions import conclude
from outrider_bench.hosts import Hosts, available_cores
from outrider_bench.plots import import_pyplot, write_plots
from outrider_bench.results_file import RESULTS, write_result
from outrider_bench.runs import Task
from outrider_bench.stand import Models, Stand
from outrider_bench.tables import tables

_SEED = 1
_WIDTH = 140  # of tables that go into a file


@click.command("bench")
@click.option("--target", default="default", show_default=True, help="Target model.")
@click.option("--draft", help="Draft model, or 'ngram'.  "
              "[default: the embedded pair's; ngram for another target]")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="Device of both models.")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", help="Of the target.")
@click.option("--draft-dtype", type=click.Choice(DTYPES), default="auto", help="Of the draft.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True,
              help="Of each model, and cores of each simulated host.")  # fmt: skip
@click.option("--prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="A file with a prompt in each line.  [default: 26 of our own]")  # fmt: skip
@click.option("--num-prompts", type=click.IntRange(min=1), help="Of the side-by-side table.")
@click.option("--curve-prompts", type=click.IntRange(min=1), help="Of each point of a curve.")
@click.option("--max-new-tokens", type=click.IntRange(min=4), help="Tokens of each text.")
@click.option("--num-speculative-tokens", type=click.IntRange(min=1),
              help="Fixed draft length.  [default: up to the policy]")  # fmt: skip
@click.option("--prompt-lookup/--no-prompt-lookup", default=True,
              help="Whether the pair looks drafts up in the text, too.")  # fmt: skip
@click.option("--only", type=click.Choice(list(sections.SECTIONS)), multiple=True,
              help="A part of the run; repeatable.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Few prompts and few points.")
@click.option("--plots/--no-plots", default=True, help="Draw the curves (needs matplotlib).")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=RESULTS,
              show_default=True, help="Folder for results.")  # fmt: skip
@click.option("--name", default="bench", show_default=True, help="Of the result's files.")
def main(
    prompts: Path | None,
    num_prompts: int | None,
    curve_prompts: int | None,
    max_new_tokens: int | None,
    num_speculative_tokens: int | None,
    prompt_lookup: bool,
    only: Sequence[str],
    quick: bool,
    plots: bool,
    output: Path,
    name: str,
    **models: Any,
) -> None:
    """Measure the pair beside its baselines: speed, round trips, lengths, capacity.

    Draft and target have cores of their own, as if on two hosts, where the machine
    has enough of them.
    """
    if plots:
        import_pyplot()  # an error now rather than after the measurements
    if models["draft"] is None:
        models["draft"] = "default" if models["target"] == "default" else "ngram"
    lines = read_prompts(prompts)
    plan = dataclasses.replace(
        plan_of(lines, num_prompts, curve_prompts, max_new_tokens, quick),
        k=num_speculative_tokens,
        looks_up=prompt_lookup,
    )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    document = measure(Models(**models), plan, only or list(sections.SECTIONS), console)
    console.print(f"{document['settings']['hosts']}; threads of each model: {models['threads']}\n")
    for table in tables(document):
        console.print(table, "")
    settings = document.pop("settings")
    result = write_result(name, settings, output, **document)
    drawn = write_plots(document, output, name) if plots else []
    page = output / f"{name}.html"
    write_page([result], page)
    for path in (result, *drawn, page):
        console.print(f"wrote {path}")


def measure(
    models: Models, plan: sections.Plan, names: Sequence[str], console: Console
) -> dict[str, Any]:
    """Runs the sections and draws the conclusions. Raises OutriderError."""
    hosts = Hosts.of(models.threads, available_cores())
    with console.status("starting") as status, Stand(models, hosts, status.update) as stand:
        found, seconds = sections.run(stand, plan, names)
        num_branches = stand.info.default_num_branches
        served = {"target": asdict(stand.info.target), "draft": stand.draft_info()}
    settings = {
        "models": asdict(models),
        "served": served,
        "hosts": str(hosts),
        "num_branches": num_branches,
        "plan": asdict(plan)
        | {part: [t.prompt for t in getattr(plan, part)] for part in ("tasks", "curve_tasks")},
        "max_new_tokens": plan.tasks[0].max_new_tokens,
        "seconds": seconds,
        "assisted": "transformers has the draft's weights in the target's precision",
    }
    return {
        "settings": settings,
        "sections": found,
        "conclusions": conclude(found, num_branches),
    }


def read_prompts(path: Path | None) -> list[str]:
    """The lines of a file that have text, or our own prompts. Raises ConfigurationError."""
    try:
        text = (path or files("outrider_bench") / "prompts.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read prompts: {error}") from error
    if not (lines := [line for line in text.splitlines() if line.strip()]):
        raise ConfigurationError(f"{path} has no prompts")
    return lines


def spread(lines: Sequence[str], count: int) -> list[str]:
    """`count` lines, evenly over all of them, if there are so many."""
    count = min(count, len(lines))
    return [lines[i * len(lines) // count] for i in range(count)]


def plan_of(
    lines: Sequence[str],
    num_prompts: int | None,
    curve_prompts: int | None,
    max_new_tokens: int | None,
    quick: bool,
) -> sections.Plan:
    """What is measured; what is not chosen depends on `quick`."""
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


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_service(main)
