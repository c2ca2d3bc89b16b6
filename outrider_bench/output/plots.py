"""The figures of a run as SVG files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from outrider.errors import ConfigurationError, install_hint
from outrider_bench.harness.sections import LEG_NAMES, PIPELINED, SEQUENTIAL
from outrider_bench.models.figures import TARGET_ONLY

_SIZE = (6.4, 3.6)  # inches


def write_plots(document: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """Writes `<folder>/<name>_<plot>.svg` for each section that was measured; returns the paths.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    pyplot = import_pyplot()
    paths = []
    for plot, (section, draw) in _PLOTS.items():
        if found := document["sections"].get(section):
            figure, axes = pyplot.subplots(figsize=_SIZE, layout="constrained")
            draw(axes, found)
            axes.spines[["top", "right"]].set_visible(False)
            path = folder / f"{name}_{plot}.svg"
            figure.savefig(path, metadata={"Date": None})
            pyplot.close(figure)
            paths.append(path)
    return paths


def import_pyplot() -> Any:
    """Raises ConfigurationError."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigurationError(
            f"plots need matplotlib (or --no-plots); {install_hint('bench')}"
        ) from error
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "outrider"  # the same figures give the same file
    from matplotlib import pyplot

    return pyplot


def _modes(axes: Any, modes: Mapping[str, Any]) -> None:
    height = 0.8 / len(modes)
    for number, (temperature, ways) in enumerate(modes.items()):
        places = [row + number * height for row in range(len(ways))]
        bars = axes.barh(places, [way["speedup"] for way in ways.values()], height)
        bars.set_label(temperature)
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.set_yticks([row + height * (len(modes) - 1) / 2 for row in range(len(ways))], ways)
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("speed, target only = 1")
    axes.legend(loc="lower right")


def _round_trips(axes: Any, found: Mapping[str, Any]) -> None:
    for leg, style in (("draft", "-"), ("target", ":"), ("both", "--")):
        by_rtt = {"0": found["draft"]["0"], **found[leg]}
        for mode, colour in ((SEQUENTIAL, "C0"), (PIPELINED, "C1")):
            points = [(float(rtt), ways[mode]["speedup"]) for rtt, ways in by_rtt.items()]
            label = f"{mode}, {LEG_NAMES[leg]}"
            axes.plot(*zip(*points, strict=True), f"o{style}", color=colour, label=label)
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set(xlabel="added round trip, ms", ylabel="speed, target only = 1")
    axes.legend()


def _lengths(axes: Any, found: Mapping[str, Any]) -> None:
    _plot_modes(axes, found)
    drafted = {int(k): way for k, way in found[SEQUENTIAL].items() if "ratios" in way}
    points = [(k, way["ratios"]["draft_acceptance_rate"]) for k, way in drafted.items()]
    if points:
        axes.plot(
            *zip(*points, strict=True), "s:", color="C2", label="accepted draft tokens, share"
        )
    axes.set(xlabel="draft tokens a step", ylabel="speed, target only = 1; share")
    axes.legend()


def _plot_modes(axes: Any, found: Mapping[str, Any]) -> None:
    for mode, colour in ((SEQUENTIAL, "C0"), (PIPELINED, "C1")):
        points = [(float(point), way["speedup"]) for point, way in found[mode].items()]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=mode)
    axes.axhline(1.0, color="grey", linewidth=0.8)


def _acceptance(axes: Any, found: Mapping[str, Any]) -> None:
    _plot_modes(axes, found)
    axes.set(
        xlabel="chosen probability that a draft token is right", ylabel="speed, target only = 1"
    )
    axes.legend()


def _stages(axes: Any, modes: Mapping[str, Any]) -> None:
    ways: Mapping[str, Any] = next(iter(modes.values()))
    ours = [name for name in (TARGET_ONLY, SEQUENTIAL, PIPELINED) if name in ways]
    stages = {stage: None for name in ours for stage in ways[name]["critical_path_ms_per_token"]}
    ends = [0.0] * len(ours)
    for stage in stages:
        widths = [ways[name]["critical_path_ms_per_token"].get(stage, 0.0) for name in ours]
        if max(widths) > 0.01 * sum(widths):
            axes.barh(ours, widths, left=ends, label=stage)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("critical path, ms a token, first token included")
    axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _capacity(axes: Any, found: Mapping[str, Mapping[int, float]]) -> None:
    for system, speeds in found.items():
        axes.plot([int(n) for n in speeds], list(speeds.values()), "o-", label=system)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="concurrent sessions", ylabel="tokens a second, all together")
    axes.set_ylim(bottom=0)
    axes.legend()


# By the file's name: its section, and the function that draws it.
_PLOTS: dict[str, tuple[str, Callable[[Any, Mapping[str, Any]], None]]] = {
    "modes": ("modes", _modes),
    "rtt": ("rtt", _round_trips),
    "stages": ("modes", _stages),
    "lengths": ("lengths", _lengths),
    "acceptance": ("acceptance", _acceptance),
    "capacity": ("capacity", _capacity),
}
