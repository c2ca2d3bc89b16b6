"""Tables of a run for the terminal."""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Column, Table

from outrider_bench.harness.sections import LEG_NAMES, PIPELINED, SEQUENTIAL
from outrider_bench.models.figures import TARGET_ONLY


def tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """A table for each section and conclusion of a result."""
    sections, conclusions = document["sections"], document["conclusions"]
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
    if found := conclusions.get("costs"):
        yield _costs(found)
    if found := conclusions.get("predicted"):
        yield _predicted(found)
    if found := conclusions.get("what_if"):
        yield _speedups("speedup by the loop model, k at its best", found)
    if found := conclusions.get("on_own_hosts"):
        rows = {f"{draft}, {name}": row for draft, by in found.items() for name, row in by.items()}
        yield _speedups("the same on hosts that share nothing", rows)
    if found := conclusions.get("table"):
        yield _hits(found, sections["trace"])


def _table(title: str, *headings: str) -> Table:
    first, *others = headings
    columns = [Column(first, no_wrap=True), *(Column(each, justify="right") for each in others)]
    look: Any = {"title_justify": "left", "box": None, "pad_edge": False, "header_style": "dim"}
    return Table(*columns, title=title, **look)


def _cell(value: Any, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _ways(title: str, ways: Mapping[str, Any]) -> Table:
    table = _table(
        title, "", "ms a token", "first token ms", "speedup", "accepted", "k",
        "tokens a step", "hits", "on hit", "on miss", "in vain", "looked up", "different",
    )  # fmt: skip
    for name, found in ways.items():
        table.add_row(
            name,
            _cell(found["ms_per_token"], 1),
            _cell(found["first_token_ms"], 0),
            f"{found['speedup']:.2f}x",
            *_ratio_cells(found.get("ratios", {})),
            _cell(found["num_different"]),
        )
    return table


def _ratio_cells(ratios: Mapping[str, Any]) -> list[str]:
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
    return [_cell(ratios.get(name)) for name in names]


def _round_trips(leg: str, by_rtt: Mapping[str, Any]) -> Table:
    title = f"added round trips to {LEG_NAMES[leg]}"
    headings = (
        "target only, ms a token",
        SEQUENTIAL,
        PIPELINED,
        f"{PIPELINED} / {SEQUENTIAL}",
        "k",
    )
    table = _table(title, "ms", *headings)
    for rtt, ways in by_rtt.items():
        turn, ahead = ways[SEQUENTIAL], ways[PIPELINED]
        table.add_row(
            rtt,
            _cell(ways[TARGET_ONLY]["ms_per_token"], 1),
            f"{turn['speedup']:.2f}x",
            f"{ahead['speedup']:.2f}x",
            f"{_prompt_ratio(turn, ahead):.2f}x",
            _cell(ahead.get("ratios", {}).get("mean_draft_length"), 1),
        )
    return table


def _prompt_ratio(slow: Mapping[str, Any], fast: Mapping[str, Any]) -> float:
    """The median over prompts of the ratio of two ways."""
    pairs = zip(slow["per_prompt_ms"], fast["per_prompt_ms"], strict=True)
    return float(statistics.median(a / b for a, b in pairs))


def _curve(title: str, column: str, found: Mapping[str, Any]) -> Table:
    headings = (
        "accepted",
        SEQUENTIAL,
        PIPELINED,
        f"{PIPELINED} / {SEQUENTIAL}",
        "tokens a step",
        "hits",
    )
    table = _table(title, column, *headings)
    for point, turn in found[SEQUENTIAL].items():
        ahead = found[PIPELINED][point]
        table.add_row(
            str(point),
            _cell(turn.get("ratios", {}).get("draft_acceptance_rate")),
            f"{turn['speedup']:.2f}x",
            f"{ahead['speedup']:.2f}x",
            f"{_prompt_ratio(turn, ahead):.2f}x",
            _cell(turn.get("ratios", {}).get("mean_acceptance_length")),
            _cell(ahead.get("ratios", {}).get("table_hit_rate")),
        )
    return table


def _capacity(found: Mapping[str, Mapping[int, float]]) -> Table:
    levels = list(next(iter(found.values())))
    table = _table("tokens a second, all sessions together", "sessions", *map(str, levels))
    for system, speeds in found.items():
        table.add_row(system, *(_cell(speeds[level], 1) for level in levels))
    return table


def _costs(found: Mapping[int, Mapping[str, Any]]) -> Table:
    names = list(next(iter(found.values())))
    table = _table("costs, sequential", "k", *(name.replace("_", " ") for name in names))
    for k, costs in found.items():
        table.add_row(str(k), *(_cell(costs[name]) for name in names))
    return table


def _predicted(found: list[dict[str, Any]]) -> Table:
    table = _table(
        "the loop model beside what was measured", "", "k", "ms a token", "model", "hits", "model"
    )
    for point in found:
        hits = (point["measured_hit_rate"], point["predicted_hit_rate"])
        table.add_row(
            point["mode"],
            str(point["k"]),
            _cell(point["measured_ms_per_token"], 1),
            _cell(point["predicted_ms_per_token"], 1),
            *(_cell(hit) for hit in hits),
        )
    return table


def _speedups(title: str, found: Mapping[str, Mapping[str, float]]) -> Table:
    table = _table(title, "", SEQUENTIAL, "k", PIPELINED, "k")
    for name, row in found.items():
        table.add_row(
            name,
            f"{row[SEQUENTIAL]:.2f}x",
            str(row[f"k {SEQUENTIAL}"]),
            f"{row[PIPELINED]:.2f}x",
            str(row[f"k {PIPELINED}"]),
        )
    return table


def _hits(found: Mapping[str, Mapping[int, float]], trace: Mapping[str, Any]) -> Table:
    lengths = list(next(iter(found.values())))
    table = _table(
        "table hits by the loop model, and how often a correction is among the runners-up",
        "", "accepted", "bonus guessed", *(f"hits, k = {k}" for k in lengths),
        "first 1", "2", "4", "8",
    )  # fmt: skip
    for rule, rates in found.items():
        figures = trace[rule]
        coverage = figures["runner_up_coverage"]
        table.add_row(
            rule,
            _cell(figures["acceptance_rate"]),
            _cell(figures["bonus_guess_rate"]),
            *(_cell(rates[k]) for k in lengths),
            *(_cell(coverage[r]) for r in (1, 2, 4, 8)),
        )
    return table
