"""Speedups of the loop with other times, from a result of `outrider bench`.

python -m outrider_bench.what_if benchmarks/results/bench.json --verify-per-token 0
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from outrider.errors import ConfigurationError
from outrider.settings.options import run_group, settings_group
from outrider_bench.harness.conclusions import Texts, read_texts
from outrider_bench.harness.sections import GREEDY, PIPELINED, SEQUENTIAL
from outrider_bench.models.loop_model import Times, best_fan_out, best_speedup

_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16)


@click.command()
@click.argument("result", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--num-predrafts", default=4, show_default=True, help="Outcomes to predraft for, at most."
)
def what_if(result: Path, num_predrafts: int, **changes: float | None) -> None:
    """Print the speedup over the target alone by draft length; all times are in ms."""
    texts, times = read(result)
    known = {name: value for name, value in changes.items() if value is not None}
    changed = {mode: dataclasses.replace(of_mode, **known) for mode, of_mode in times.items()}
    for mode, count in ((SEQUENTIAL, 0), (PIPELINED, num_predrafts)):
        for k in _LENGTHS:
            click.echo(_line(mode, k, texts, changed[mode], count))
        speedup, best = best_speedup(texts, changed[mode], count)
        click.echo(f"{mode}: at best {speedup:.2f}x, with k = {best}")


for _time in dataclasses.fields(Times):
    click.option(f"--{_time.name.replace('_', '-')}", type=float)(what_if)


def _line(mode: str, k: int, texts: Texts, times: Times, num_predrafts: int) -> str:
    found = best_fan_out(texts, times, k, num_predrafts)
    speedup = times.target_alone / found.ms_per_token
    return (
        f"{mode:10} k = {k:2}  {found.ms_per_token:6.1f} ms a token  {speedup:.2f}x  "
        f"hits {found.hit_rate:.2f}"
    )


def read(result: Path) -> tuple[Texts, dict[str, Times]]:
    """The texts of a result, and its times by mode. Raises ConfigurationError."""
    try:
        document: dict[str, Any] = json.loads(result.read_text())
        texts = read_texts(document["sections"]["trace"][GREEDY]["texts"])
        stored = document["conclusions"]["times"]
        return texts, {mode: Times(**times) for mode, times in stored.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{result} has no trace with times; measure with --only lengths --only trace"
        ) from error


def main() -> None:
    group = settings_group()
    group.add_command(what_if, "what-if")
    run_group(group)


if __name__ == "__main__":
    main()
