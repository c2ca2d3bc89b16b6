"""Tables of a run for the terminal."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.table import Column, Table

from outrider_bench.harness.sections import LEG_NAMES, PIPELINED, SEQUENTIAL
from outrider_bench.models.figures import TARGET_ONLY


def tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """A table for each section of a result, and of costs."""
    sections = document["sections"]
    for temperature, ways in sections.get("modes", {}).items():
        yield _ways(f"side by side, {temperature}", ways)
    for leg, by_rtt in sections.get("rtt", {}).items():
        yield _round_trips(leg, by_rtt)
    for title, column, name in (
        ("fixed draft length", "k", "lengths"),
        ("chosen acceptance", "acceptance", "acceptance"),
    ):
        if found := sections.get(name):
            yield _curve(title, column, found)
    if found := sections.get("capacity"):
        yield _capacity(found)
    if found := document.get("costs"):
        yield _costs(found)


def _table(title: str, headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> Table:
    first, *others = headings
    columns = [Column(first, no_wrap=True), *(Column(each, justify="right") for each in others)]
    look: Any = {"title_justify": "left", "box": None, "pad_edge": False, "header_style": "dim"}
    table = Table(*columns, title=title, **look)
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _cell(value: Any, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _speedup(way: Mapping[str, Any]) -> str:
    return f"{way['speedup']:.2f}x"


def _ways(title: str, ways: Mapping[str, Any]) -> Table:
    headings = (
        "", "ms a token", "first token ms", "speedup", "accepted", "k",
        "tokens a step", "hits", "on hit", "on miss", "in vain", "looked up", "different",
    )  # fmt: skip
    names = (
        "draft_acceptance_rate",
        "mean_draft_length",
        "mean_acceptance_length",
        "table_hit_rate",
        "tokens_per_step_on_hit",
        "tokens_per_step_on_miss",
        "predrafted_in_vain",
        "lookup_step_rate",
    )
    rows = (
        (
            name,
            _cell(found["ms_per_token"], 1),
            _cell(found["first_token_ms"], 0),
            _speedup(found),
            *(_cell(found.get("ratios", {}).get(ratio)) for ratio in names),
            _cell(found["num_different"]),
        )
        for name, found in ways.items()
    )
    return _table(title, headings, rows)


def _round_trips(leg: str, by_rtt: Mapping[str, Any]) -> Table:
    title = f"added round trips to {LEG_NAMES[leg]}"
    headings = ("ms", "target only, ms a token", *_MODES, "k")
    rows = (
        (
            rtt,
            _cell(ways[TARGET_ONLY]["ms_per_token"], 1),
            *_modes(ways[SEQUENTIAL], ways[PIPELINED]),
            _cell(ways[PIPELINED].get("ratios", {}).get("mean_draft_length"), 1),
        )
        for rtt, ways in by_rtt.items()
    )
    return _table(title, headings, rows)


_MODES = (SEQUENTIAL, PIPELINED, f"{PIPELINED} / {SEQUENTIAL}")


def _modes(turn: Mapping[str, Any], ahead: Mapping[str, Any]) -> tuple[str, ...]:
    """Both speedups, and the median over prompts of their ratio."""
    pairs = zip(turn["per_prompt_ms"], ahead["per_prompt_ms"], strict=True)
    ratio = statistics.median(slow / fast for slow, fast in pairs)
    return _speedup(turn), _speedup(ahead), f"{ratio:.2f}x"


def _curve(title: str, column: str, found: Mapping[str, Any]) -> Table:
    headings = (column, "accepted", *_MODES, "tokens a step", "hits")
    points = ((point, turn, found[PIPELINED][point]) for point, turn in found[SEQUENTIAL].items())
    rows = (
        (
            point,
            _cell(turn.get("ratios", {}).get("draft_acceptance_rate")),
            *_modes(turn, ahead),
            _cell(turn.get("ratios", {}).get("mean_acceptance_length")),
            _cell(ahead.get("ratios", {}).get("table_hit_rate")),
        )
        for point, turn, ahead in points
    )
    return _table(title, headings, rows)


def _capacity(found: Mapping[str, Mapping[int, float]]) -> Table:
    levels = list(next(iter(found.values())))
    rows = (
        (system, *(_cell(speeds[level], 1) for level in levels)) for system, speeds in found.items()
    )
    title = "tokens a second, all sessions together"
    return _table(title, ("sessions", *map(str, levels)), rows)


def _costs(found: Mapping[int, Mapping[str, Any]]) -> Table:
    names = list(next(iter(found.values())))
    headings = ("k", *(name.replace("_", " ") for name in names))
    rows = ((k, *(_cell(costs[name]) for name in names)) for k, costs in found.items())
    return _table("costs, sequential", headings, rows)
