"""The command `outrider bench`."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from outrider.huge_pages import HUGE_PAGES
from outrider.settings.options import DRAFT_DTYPES, TARGET_DTYPES, run_command
from outrider.settings.types import THREADS
from outrider_bench import RESULTS, SECTION_NAMES

_WIDTH = 140  # of tables that go into a file


@click.command("bench")
@click.option("--target", default="default", show_default=True, help="Target model.")
@click.option("--draft", help="Draft model.  [default: the embedded pair's]")
@click.option("--device", default="auto", show_default=True, help="Device of both models.")
@click.option("--dtype", type=click.Choice(TARGET_DTYPES), default="auto", help="Of the target.")
@click.option(
    "--draft-dtype", type=click.Choice(DRAFT_DTYPES), default="auto", help="Of the draft."
)
@click.option("--threads", type=THREADS, default=1, show_default=True,
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
@click.option("--only", type=click.Choice(SECTION_NAMES), multiple=True,
              help="A part of the run; repeatable.")  # fmt: skip
@click.option("--quick", is_flag=True, help="Few prompts and few points.")
@click.option("--plots/--no-plots", default=True, help="Draw the curves (needs matplotlib).")
@click.option("--redraw", is_flag=True,
              help="Draw all results in the folder again, without measuring.")  # fmt: skip
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
    redraw: bool,
    output: Path,
    name: str,
    **models: Any,
) -> None:
    """Compare the pair with its baselines: speed, round trips, lengths, capacity.

    Draft and target have separate cores, as if on two hosts, if the machine has
    enough of them.
    """
    if models["draft"] is None:
        if models["target"] != "default":
            raise click.UsageError("another target than the embedded one needs its --draft")
        models["draft"] = "default"
    if Path(name).name != name:
        raise click.UsageError("--name has no folder, which --output names")
    # Imports torch, which takes seconds: --help and mistakes in settings do not wait for it.
    from outrider.cli.html_report import write_page
    from outrider_bench.harness.measuring import measure, plan_of
    from outrider_bench.harness.prompts import read_prompts
    from outrider_bench.harness.stand import Models
    from outrider_bench.output.plots import write_plots
    from outrider_bench.output.results_file import make_folder, write_result
    from outrider_bench.output.style import check_matplotlib
    from outrider_bench.output.terminal import show

    if plots or redraw:
        check_matplotlib()  # an error now rather than after the measurements
    if redraw:
        drawn = [plot for path in sorted(output.glob("*.json")) for plot in write_plots(path)]
        if not drawn:
            raise click.UsageError(f"{output} has no results to draw")
        for path in drawn:
            click.echo(f"wrote {path}")
        return
    lines = read_prompts(prompts)
    make_folder(output)
    plan = dataclasses.replace(
        plan_of(lines, num_prompts, curve_prompts, max_new_tokens, quick),
        k=num_speculative_tokens,
        looks_up=prompt_lookup,
    )
    os.environ.setdefault(*HUGE_PAGES)  # of the baselines, too
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    document = measure(Models(**models), plan, only or SECTION_NAMES, console)
    settings = document.pop("settings")
    console.print(f"{settings['hosts']}; threads of each model: {models['threads']}\n")
    show(document, console)
    result = write_result(name, settings, output, **document)
    drawings = write_plots(result) if plots else []
    page = output / f"{name}.html"
    write_page([result], page)
    for path in (result, *drawings, page):
        console.print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
