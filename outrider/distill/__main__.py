"""`outrider distill`: makes a draft for a target."""

import math
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from outrider.settings.options import DTYPES, FiniteRange, run_command

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
AT_LEAST_ONE = click.IntRange(min=1)


def _layers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """The layers (0, 1, 2, 3, 7) of a text such as 0-3,7."""
    layers: set[int] = set()
    for part in filter(None, value.split(",")):
        first, is_range, last = part.partition("-")
        last = last if is_range else first
        if not first.isdecimal() or not last.isdecimal():
            raise click.BadParameter("a list such as 0-3,7,11; layers count from 0")
        if int(last) < int(first):
            raise click.BadParameter(f"{part} ends before it begins")
        layers.update(range(int(first), int(last) + 1))
    return tuple(sorted(layers))


def _temperatures(
    context: click.Context, parameter: click.Parameter, value: str
) -> tuple[float, ...]:
    try:
        temperatures = tuple(map(float, value.split(",")))
    except ValueError:
        temperatures = (-1.0,)
    if not all(0.0 <= temperature < math.inf for temperature in temperatures):
        raise click.BadParameter("a list such as 0,0.5,1")
    return temperatures


@click.command("distill")
@click.option("--target", default="default", show_default=True, help="Model to make a draft for.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--num-texts", type=click.IntRange(min=0), default=2048, show_default=True,
              help="Texts that the target writes itself.")  # fmt: skip
@click.option("--prompts", type=FILE, help="Questions for the target, one a line, instead.")
@click.option("--temperatures", default="0,0.5,0.8,1", show_default=True, callback=_temperatures,
              help="Of answers, in turn; 0 is greedy.")  # fmt: skip
@click.option("--text", type=FILE, help="A text file to learn from, too.")
@click.option("--data", type=FILE, help="An .npz file of texts to learn from, too.")
@click.option("--start-from", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A draft made before: train that one further.")  # fmt: skip
@click.option(
    "--layers", default="", callback=_layers, help="The target's layers to keep: 0-3,7,11."
)
@click.option("--num-layers", type=AT_LEAST_ONE, default=12, show_default=True,
              help="Without --layers: how many, those that change their input most.")  # fmt: skip
@click.option("--trained-layers", type=AT_LEAST_ONE,
              help="Train only this many of the last layers.  [default: all]")  # fmt: skip
@click.option("--refit-texts", type=click.IntRange(min=0), default=96, show_default=True,
              help="Refit the layers on this many texts before training.")  # fmt: skip
@click.option("--int8", is_flag=True, help="Train for --dtype int8: round as it will.")
@click.option("--draft-vocabulary", type=AT_LEAST_ONE, default=16384, show_default=True,
              help="Propose only this many of the most frequent tokens.")  # fmt: skip
@click.option("--steps", type=AT_LEAST_ONE, default=2000, show_default=True)
@click.option("--batch-size", type=AT_LEAST_ONE, default=16, show_default=True)
@click.option("--learning-rate", type=FiniteRange(min=0, min_open=True), default=6e-4,
              show_default=True)  # fmt: skip
@click.option("--max-length", type=click.IntRange(min=16), default=256, show_default=True,
              help="Longest text, in tokens.")  # fmt: skip
@click.option("--checkpoint-every", type=AT_LEAST_ONE, default=50, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", help="Of the target.")
@click.option("--threads", type=AT_LEAST_ONE)
def main(**settings: Any) -> None:
    """Make a draft out of the target's own layers. Goes on where it was interrupted."""
    # Imports torch, which takes seconds: --help and mistakes in settings do not wait for it.
    from outrider.distill.recipe import Recipe, distill

    console = Console(stderr=True)
    folder = distill(Recipe(**settings), console)
    console.print(f"The draft is in {folder}: outrider up --target ... --draft {folder}")


if __name__ == "__main__":
    run_command(main)
