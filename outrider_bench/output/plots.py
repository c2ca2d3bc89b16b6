"""The drawings of results, made from their files: `outrider bench --redraw` repeats them all."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from outrider.cli.pages.bench import LEGS, SYSTEMS, WAYS
from outrider.cli.pages.shares import by_track
from outrider.errors import ConfigurationError
from outrider_bench.harness.capacity import ALONE, ONE_HOST, TWO_HOSTS
from outrider_bench.harness.sections import PIPELINED, SEQUENTIAL
from outrider_bench.models.figures import TARGET_ONLY
from outrider_bench.output import style
from outrider_bench.output.load_plot import draw_load
from outrider_bench.output.step_plot import draw_step
from outrider_bench.output.style import card, legend_below, mark_one, steps_of_two

_MODES = ((SEQUENTIAL, style.BLUE, "o--"), (PIPELINED, style.VERMILION, "s-"))
_SYSTEMS = {
    ALONE: (style.BLUE, "o-"),
    ONE_HOST: (style.PURPLE, "^:"),
    TWO_HOSTS: (style.VERMILION, "s--"),
}
_SPEEDUP = "speed (target alone = 1)"


def write_plots(result: Path) -> list[Path]:
    """Writes `<name>_<plot>.svg` beside `<name>.json` for all that it holds; returns the paths.

    Raises:
        ConfigurationError: matplotlib is not installed, or the file is not JSON.
    """
    try:
        document = json.loads(result.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read {result}: {error}") from error
    paths: list[Path] = []
    if not isinstance(document, dict):
        return paths
    for plot, (find, draw) in _PLOTS.items():
        if found := find(document):
            path = result.with_name(f"{result.stem}_{plot}.svg")
            draw(path, found)
            paths.append(path)
    return paths


def _section(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda document: document.get("sections", {}).get(name)


def _rows_of_load(document: Mapping[str, Any]) -> Any:
    rows = document.get("figures")
    return rows if isinstance(rows, list) and rows and "client" in rows[0] else None


def _modes(path: Path, modes: Mapping[str, Any]) -> None:
    ways = next(iter(modes.values()))
    subtitle = f"speed as a multiple of the target's alone; {_texts(ways[TARGET_ONLY])}"
    with card(path, "How much faster than the target alone?", subtitle, 1.5 + 0.5 * len(ways)) as (
        figure,
        [axes],
    ):
        height = 0.8 / len(modes)
        colours = (style.BLUE, style.SKY, style.DARK)
        for number, (temperature, found) in enumerate(modes.items()):
            places = [row + (number - (len(modes) - 1) / 2) * height for row in range(len(ways))]
            speedups = [found[name]["speedup"] for name in ways]
            label = "greedy" if temperature == "temperature 0" else temperature
            bars = axes.barh(places, speedups, height * 0.92, color=colours[number], label=label)
            style.label_bars(axes, bars, [f"{speedup:.2f}x" for speedup in speedups])
        axes.set_yticks(range(len(ways)), [WAYS.get(name, name) for name in ways])
        for label, name in zip(axes.get_yticklabels(), ways, strict=True):
            label.set_weight("bold" if name == PIPELINED else "normal")
        style.bars_only(axes)
        mark_one(axes, upright=True)
        axes.set_xlabel(_SPEEDUP)
        legend_below(figure, axes)


def _texts(way: Mapping[str, Any]) -> str:
    """Of how many texts a figure is, from those of a way through our services."""
    num_tokens = way["num_tokens"] // way["num_prompts"]
    return f"medians of {way['num_prompts']} texts of {num_tokens} tokens"


def _stages(path: Path, modes: Mapping[str, Any]) -> None:
    ways: Mapping[str, Any] = next(iter(modes.values()))
    ours = [name for name in (TARGET_ONLY, SEQUENTIAL, PIPELINED) if name in ways]
    tracks = [by_track(ways[name]["critical_path_ms_per_token"]) for name in ours]
    subtitle = "the critical path, divided by all tokens of all texts; greedy, prompts included"
    with card(path, "Where does a token's time go?", subtitle, 3.1) as (figure, [axes]):
        ends = [0.0] * len(ours)
        for track, colour in style.TRACKS.items():
            widths = [found[track] for found in tracks]
            bars = axes.barh(range(len(ours)), widths, 0.5, ends, label=track, color=colour)
            ends = [end + width for end, width in zip(ends, widths, strict=True)]
        style.label_bars(axes, bars, [f"{end:.1f} ms" for end in ends], weight="bold")
        for row, found in enumerate(tracks):
            parts = " · ".join(f"{track} {found[track]:.1f}" for track in style.TRACKS)
            axes.text(0, row + 0.29, parts, va="top", size=8.5, color=style.MUTED)
        axes.set_yticks(range(len(ours)), [WAYS[name] for name in ours])
        axes.set(
            xlabel="milliseconds a token", xlim=(0, 1.1 * max(ends)), ylim=(-0.4, len(ours) - 0.3)
        )
        style.bars_only(axes)
        legend_below(figure, axes)


def _round_trips(path: Path, found: Mapping[str, Any]) -> None:
    baseline = found["draft"]["0"]
    subtitle = f"speed over the target's alone in the same network; {_texts(baseline[TARGET_ONLY])}"
    shared = {"ncols": len(found), "sharey": True}
    with card(path, "What does distance cost?", subtitle, 3.5, **shared) as (figure, panels):
        for axes, (leg, by_rtt) in zip(panels, found.items(), strict=True):
            points = {float(rtt): ways for rtt, ways in {"0": baseline, **by_rtt}.items()}
            _plot_modes(axes, {mode: _speedups(points, mode) for mode, *_ in _MODES})
            axes.set_title(f"to {LEGS[leg]}")
            axes.set_xticks(list(points), [f"{rtt:g}" for rtt in points])
            axes.set_xlabel("added round trip, ms")
        panels[0].set_ylabel(_SPEEDUP)
        legend_below(figure, panels[0])


def _speedups(points: Mapping[float, Any], mode: str) -> dict[float, float]:
    return {point: ways[mode]["speedup"] for point, ways in points.items()}


def _plot_modes(axes: Any, found: Mapping[str, Mapping[float, float]]) -> None:
    for mode, colour, line in _MODES:
        points, values = found[mode].keys(), found[mode].values()
        axes.plot(list(points), list(values), line, color=colour, label=WAYS[mode])
    mark_one(axes)


def _lengths(path: Path, found: Mapping[str, Any]) -> None:
    subtitle = f"fixed draft lengths, no prompt lookup; {_texts(found[TARGET_ONLY])}"
    title = "How many draft tokens a step?"
    with card(path, title, subtitle, 3.5, ncols=2) as (figure, (speeds, shares)):
        by_mode = {mode: {int(k): way for k, way in found[mode].items()} for mode, *_ in _MODES}
        _plot_modes(
            speeds, {m: {k: w["speedup"] for k, w in by_k.items()} for m, by_k in by_mode.items()}
        )
        speeds.set(title=_SPEEDUP)
        for mode, colour, line in _MODES:
            rates = {
                k: 100 * way["ratios"]["draft_acceptance_rate"]
                for k, way in by_mode[mode].items()
                if "ratios" in way
            }
            shares.plot(list(rates), list(rates.values()), line, color=colour)
        shares.set(title="draft tokens accepted, %", ylim=(0, 100))
        for axes in (speeds, shares):
            steps_of_two(axes, list(by_mode[PIPELINED]))
            axes.set_xlabel("draft tokens a step, k")
        legend_below(figure, speeds)


def _acceptance(path: Path, found: Mapping[str, Any]) -> None:
    subtitle = f"a draft at this one's cost, right as often as chosen; {_texts(found[TARGET_ONLY])}"
    title = "What would a better draft give?"
    with card(path, title, subtitle, 3.5) as (figure, [axes]):
        points = {
            mode: {float(rate): way["speedup"] for rate, way in found[mode].items()}
            for mode, *_ in _MODES
        }
        _plot_modes(axes, points)
        chosen = list(points[PIPELINED])
        axes.set_xticks(chosen, [f"{one:g}" for one in chosen])
        axes.set(xlabel="chosen probability that a draft token is right", ylabel=_SPEEDUP)
        legend_below(figure, axes)


def _capacity(path: Path, found: Mapping[str, Mapping[str, float]]) -> None:
    subtitle = "tokens a second of all sessions together, at temperature 1"
    with card(path, "How many sessions at a time?", subtitle, 3.6) as (figure, [axes]):
        for system, (colour, line) in _SYSTEMS.items():
            counts = [int(count) for count in found[system]]
            axes.plot(
                counts, list(found[system].values()), line, color=colour, label=SYSTEMS[system]
            )
        steps_of_two(axes, counts)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="concurrent sessions", ylabel="tokens a second")
        legend_below(figure, axes)


# By the end of the file's name: what is drawn of a document, and the function that draws it.
_PLOTS: dict[str, tuple[Callable[[Mapping[str, Any]], Any], Callable[[Path, Any], None]]] = {
    "modes": (_section("modes"), _modes),
    "rtt": (_section("rtt"), _round_trips),
    "stages": (_section("modes"), _stages),
    "lengths": (_section("lengths"), _lengths),
    "acceptance": (_section("acceptance"), _acceptance),
    "capacity": (_section("capacity"), _capacity),
    "users": (_rows_of_load, draw_load),
    "step": (lambda document: document.get("requests"), draw_step),
}
