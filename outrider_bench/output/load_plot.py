"""Throughput and latency over the load that foreign clients put on the pair."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outrider_bench.output import style
from outrider_bench.output.style import card, legend_below, steps_of_two

_CLIENTS = {"k6": (style.BLUE, "o-"), "ghz": (style.VERMILION, "s--")}

Rows = Sequence[Mapping[str, Any]]


def draw_load(path: Path, rows: Rows) -> None:
    """Draws rows of `benchmarks.load`: closed loops of both clients, and open ones."""
    closed = [row for row in rows if "users" in row]
    opened = [row for row in rows if "rate" in row]
    subtitle = "users call again as soon as they are answered; medians, shaded up to 99 % of calls"
    title = "What do many users get?"
    with card(path, title, subtitle, 3.6, ncols=3 if opened else 2) as (figure, panels):
        for client in _CLIENTS:
            own = [row for row in closed if row["client"] == client]
            _line(panels[0], own, "users", _values(own, "tokens_per_second"))
            _latencies(panels[1], own, "users")
        panels[0].set(title="tokens a second", xlabel="virtual users", ylim=(0, None))
        panels[1].set(title="seconds a call", xlabel="virtual users", ylim=(0, None))
        for panel in panels[:2]:
            steps_of_two(panel, sorted({row["users"] for row in closed}))
        if opened:
            _latencies(panels[2], opened, "rate")
            panels[2].set(
                title="seconds a call, open loop", xlabel="calls a second", ylim=(0, None)
            )
            steps_of_two(panels[2], [row["rate"] for row in opened])
        legend_below(figure, panels[0])


def _latencies(axes: Any, rows: Rows, load: str) -> None:
    _line(axes, rows, load, _values(rows, "wall_p50_ms", 1e3))
    if rows:
        bounds = _values(rows, "wall_p50_ms", 1e3), _values(rows, "wall_p99_ms", 1e3)
        colour, _ = _CLIENTS[rows[0]["client"]]
        axes.fill_between([row[load] for row in rows], *bounds, color=colour, alpha=0.15, lw=0)


def _line(axes: Any, rows: Rows, load: str, values: list[float]) -> None:
    if rows:
        client = rows[0]["client"]
        colour, line = _CLIENTS[client]
        axes.plot([row[load] for row in rows], values, line, color=colour, label=client)


def _values(rows: Rows, key: str, scale: float = 1) -> list[float]:
    return [float("nan") if row[key] is None else row[key] / scale for row in rows]
