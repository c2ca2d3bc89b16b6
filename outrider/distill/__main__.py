"""`outrider distill`: makes a draft for a target."""

import math
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from outrider.distill.shared.settings import DEFAULTS, KINDS, Recipe
from outrider.settings.options import DTYPES, run_command
from outrider.settings.types import THREADS, FiniteRange

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
AT_LEAST_ONE = click.IntRange(min=1)


def _layers(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """The layers (0, 1, 2, 3, 7) of a text such as 0-3,7."""
    if value is None:
        return None
    layers: set[int] = set()
    for part in filter(None, value.split(",")):
        first, is_range, last = part.partition("-")
        last = last if is_range else first
        if not first.isdecimal() or not last.isdecimal():
            raise click.BadParameter("a list such as 0-3,7,11; layers count from 0")
        if int(last) < int(first):
            raise click.BadParameter(f"{part} ends before it begins")
        layers.update(range(int(first), int(last) + 1))
    if not layers:
        raise click.BadParameter("no layers")
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


def _recipe(settings: dict[str, Any]) -> Recipe:
    """Settings that are not given become those of the kind. Raises UsageError."""
    kind = settings["kind"]
    own = DEFAULTS[kind]
    given = {name: value for name, value in settings.items() if value is not None}
    for other in KINDS:
        for name in DEFAULTS[other].keys() - own.keys() & given.keys():
            flag = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{flag} is of --kind {other}, and the kind is {kind}")
    return Recipe(**{**settings, **own, **given})


@click.command("distill")
@click.option("--kind", type=click.Choice(KINDS), default=KINDS[0], show_default=True,
              help="Some of the target's layers, or one that reads its hidden states.")  # fmt: skip
@click.option("--target", default="default", show_default=True, help="Model to make a draft for.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--num-texts", type=click.IntRange(min=0), default=2048, show_default=True,
              help="Texts that the target writes itself.")  # fmt: skip
@click.option("--prompts", type=FILE, help="Questions for the target, one a line, instead.")
@click.option("--held-out-prompts", type=FILE,
              help="Questions whose answers only judge the draft.")  # fmt: skip
@click.option("--temperatures", default="0,0.5,0.8,1", show_default=True, callback=_temperatures,
              help="Of answers, in turn; 0 is greedy.")  # fmt: skip
@click.option("--text", type=FILE, help="A text file to learn from, too.")
@click.option("--data", type=FILE, help="An .npz file of texts to learn from, too.")
@click.option("--start-from", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A draft made before: train that one further.")  # fmt: skip
@click.option("--layers", callback=_layers,
              help="Kind layers: the target's layers to keep: 0-3,7,11.")  # fmt: skip
@click.option("--num-layers", type=AT_LEAST_ONE,
              help="Kind layers: how many; those that change most.  [default: 12]")  # fmt: skip
@click.option("--trained-layers", type=AT_LEAST_ONE,
              help="Kind layers: train only the last ones.  [default: all]")  # fmt: skip
@click.option("--refit-texts", type=click.IntRange(min=0),
              help="Kind layers: texts to refit them on before.  [default: 96]")  # fmt: skip
@click.option("--read", callback=_layers,
              help="Kind eagle3: layers whose inputs it reads.  [default: three]")  # fmt: skip
@click.option("--unrolled-steps", type=AT_LEAST_ONE,
              help="Kind eagle3: how many tokens ahead it learns.  [default: 4]")  # fmt: skip
@click.option("--int8", is_flag=True, help="Train for --dtype int8: round as it will.")
@click.option("--draft-vocabulary", type=AT_LEAST_ONE,
              help="Propose only so many tokens.  [default: 16384; of eagle3 8192]")  # fmt: skip
@click.option("--steps", type=AT_LEAST_ONE, default=2000, show_default=True)
@click.option("--batch-size", type=AT_LEAST_ONE, help="Texts.  [default: 16; of eagle3 8]")
@click.option("--learning-rate", type=FiniteRange(min=0, min_open=True),
              help="[default: 6e-4; of eagle3 3e-3]")  # fmt: skip
@click.option("--max-length", type=click.IntRange(min=16), default=256, show_default=True,
              help="Longest text, in tokens.")  # fmt: skip
@click.option("--checkpoint-every", type=AT_LEAST_ONE, default=50, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(DTYPES), default="auto",
              help="Of the target.  [default: bfloat16 where that is fast]")  # fmt: skip
@click.option("--threads", type=THREADS)
def main(**settings: Any) -> None:
    """Make a draft for a target. Goes on where it was interrupted."""
    recipe = _recipe(settings)
    # Imports torch, which takes seconds: --help and mistakes in settings do not wait for it.
    from outrider.distill.recipe import distill

    console = Console(stderr=True)
    folder = distill(recipe, console)
    console.print(f"The draft is in {folder}: outrider up --target ... --draft {folder}")


if __name__ == "__main__":
    run_command(main)
