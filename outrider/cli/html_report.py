"""Results and answers as one self-contained HTML page: `outrider report`.

A result is a JSON object with "benchmark", "date", "versions", "hardware", "settings" and figures
under any other names. Those of `outrider bench` answer questions (`pages/bench.py`). What most
others hold becomes tables, so that a benchmark may change what it measures without a change here.
An answer is what `outrider generate --json` prints (`pages/request.py`).
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import jinja2

from outrider import __version__
from outrider.cli.pages.bench import questions
from outrider.cli.pages.request import answer
from outrider.cli.pages.section import Section
from outrider.cli.pages.tables import Table, tables
from outrider.errors import ConfigurationError

_CIRCUMSTANCES = ("benchmark", "date", "command", "versions", "hardware", "settings")


@dataclass(slots=True)
class Result:
    """What one file says.

    `where` is the machine and the day, and `plots` are data URLs of drawings that belong to no
    section, by name.
    """

    name: str
    sections: list[Section]
    where: str = ""
    plots: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    circumstances: list[Table] = field(default_factory=list)


@click.command("report")
@click.argument("results", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--output",
    default="report.html",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page.",
)
def report(results: tuple[Path, ...], output: Path) -> None:
    """Make one HTML page of RESULTS: files of benchmarks, with the drawings beside them, or what
    `outrider generate --json` printed."""
    write_page(results, output)
    click.echo(f"wrote {output}")


def write_page(results: Sequence[Path], output: Path) -> None:
    """Writes a page of result files, each with the `<name>_*.svg` of its folder.

    Raises:
        ConfigurationError: a file cannot be read or is not a result, or the page cannot be
            written.
    """
    page = _template().render(results=[read_result(path) for path in results], version=__version__)
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write {output}: {error.strerror}") from error


def read_result(path: Path) -> Result:
    """Raises ConfigurationError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        plots = _plots_of(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict) or not document.keys() & {"benchmark", "pieces"}:
        raise ConfigurationError(
            f"{path} is neither the result of a benchmark nor of `outrider generate --json`"
        )
    try:
        return _result(path.stem, document, plots)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        StopIteration,
        RecursionError,
    ) as error:
        raise ConfigurationError(f"{path} lacks figures, or has others: {error!r}") from error


def _result(stem: str, document: dict[str, Any], plots: dict[str, str]) -> Result:
    if "pieces" in document:
        return Result(stem, answer(document))
    sections = _sections(document)
    for section in sections:
        section.plots = [plots.pop(name) for name in section.plots if name in plots]
    figures = {} if sections else {k: v for k, v in document.items() if k not in _CIRCUMSTANCES}
    machine = ", ".join(str(value) for value in document.get("hardware", {}).values() if value)
    return Result(
        stem,
        sections,
        " · ".join(filter(None, (machine, document.get("date", "")[:10]))),
        plots,
        [table for name, value in figures.items() for table in tables(name, value)],
        _circumstances(document, machine),
    )


def _sections(document: Mapping[str, Any]) -> list[Section]:
    if "sections" in document:
        return questions(document)
    sections = []
    for name, request in document.get("requests", {}).items():
        for section in answer(request):
            section.title = f"{section.title} ({name})"
            section.findings = [f"{name}: {finding}" for finding in section.findings]
            sections.append(section)
    return sections


def _circumstances(document: Mapping[str, Any], machine: str) -> list[Table]:
    """What everybody wants to know, and all settings."""
    versions = document.get("versions", {})
    facts = {
        "machine": machine,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "date": document.get("date"),
        "command": document.get("command"),
    }
    told = {name: value for name, value in facts.items() if value}
    return [*tables("run", told), *tables("settings", document.get("settings"))]


def _plots_of(path: Path) -> dict[str, str]:
    """The drawings of a result: `loop_x_y.svg` is of `loop.json`, unless there is `loop_x.json`."""
    stems = [other.stem for other in path.parent.glob("*.json")]
    plots = {}
    for plot in sorted(path.parent.glob("*.svg")):
        of = max((stem for stem in stems if plot.stem.startswith(f"{stem}_")), key=len, default="")
        if of == path.stem:
            encoded = base64.b64encode(plot.read_bytes()).decode()
            plots[plot.stem.removeprefix(f"{of}_")] = f"data:image/svg+xml;base64,{encoded}"
    return plots


@cache
def _template() -> jinja2.Template:
    source = (files("outrider.cli.pages") / "page.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )
