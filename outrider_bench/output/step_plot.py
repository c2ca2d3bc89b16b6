"""One step of a recorded answer as a timeline, sequential and pipelined."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outrider.cli.pages.request import LANES, lane_of
from outrider.protocol.stages import Track
from outrider_bench.harness.sections import PIPELINED, SEQUENTIAL
from outrider_bench.output import style
from outrider_bench.output.style import card

_TITLES = {
    SEQUENTIAL: "sequential: the target waits for the draft",
    PIPELINED: "pipelined: the draft works ahead while the target verifies",
}
Interval = Mapping[str, Any]


def draw_step(path: Path, requests: Mapping[str, Mapping[str, Any]]) -> None:
    """Draws a step of each recorded request, one below the other on the same scale."""
    steps = {mode: typical_step(request["trace"]) for mode, request in requests.items()}
    longest_ms = max(step["duration_ns"] for step in steps.values()) / 1e6
    title = "What happens in one step?"
    subtitle = "recorded steps of median length; where it is pale, a message waits for a pass"
    panels = {"nrows": len(requests), "sharex": True}
    with card(path, title, subtitle, 1 + 2.1 * len(requests), **panels) as (_, all_axes):
        for axes, (mode, step) in zip(all_axes, steps.items(), strict=True):
            _draw(axes, step, requests[mode]["trace"], longest_ms)
            axes.set_title(f"{_TITLES[mode]} ({step['name']})")
        axes.set(xlim=(0, 1.01 * longest_ms), xlabel="milliseconds")


def typical_step(trace: Sequence[Interval]) -> Interval:
    """The one of median length of those that had most draft tokens, and some accepted.

    If anything was predrafted, of steps with predrafts.
    """
    steps = [one for one in trace if one["lane"] == "steps"]
    speculative = [step for step in steps if step["counts"]["accepted_tokens"]] or steps
    hits = [step for step in speculative if step["name"].endswith("predrafted")] or speculative
    most = max(step["counts"]["draft_tokens"] for step in hits)
    alike = [step for step in hits if step["counts"]["draft_tokens"] == most]
    return sorted(alike, key=lambda step: step["duration_ns"])[(len(alike) - 1) // 2]


def _draw(axes: Any, step: Interval, trace: Sequence[Interval], longest_ms: float) -> None:
    begin_ns, end_ns = step["begin_ns"], step["begin_ns"] + step["duration_ns"]
    work_ms = dict.fromkeys(LANES, 0.0)
    ends_ms = dict.fromkeys(LANES, 0.0)
    drawn = set()
    for one in trace:
        first_ns = max(one["begin_ns"], begin_ns)
        last_ns = min(one["begin_ns"] + one["duration_ns"], end_ns)
        lane = lane_of(one)
        if lane is None or last_ns <= first_ns or (lane, first_ns) in drawn:
            continue  # a pass that several predrafts share is one
        drawn.add((lane, first_ns))
        ms, place = (last_ns - first_ns) / 1e6, LANES.index(lane)
        colour, alpha = style.TRACKS[Track(one["track"])], 0.3 if one["name"] == "queue" else 1
        axes.barh(place, ms, 0.7, (first_ns - begin_ns) / 1e6, color=colour, alpha=alpha)
        ends_ms[lane] = max(ends_ms[lane], (last_ns - begin_ns) / 1e6)
        if one["name"] in ("forward", "predraft"):
            work_ms[lane] += ms
    for place, lane in enumerate(LANES):
        if work_ms[lane]:
            is_inside = ends_ms[lane] > 0.8 * longest_ms
            axes.text(
                ends_ms[lane] + (-0.01 if is_inside else 0.01) * longest_ms,
                place,
                f"{work_ms[lane]:.1f} ms",
                va="center",
                ha="right" if is_inside else "left",
                color="white" if is_inside else style.INK,
            )
    axes.set_yticks(range(len(LANES)), LANES)
    axes.set_ylim(-0.5, len(LANES) - 0.5)
    axes.axvline((end_ns - begin_ns) / 1e6, color=style.MUTED, linewidth=1.2)
    style.bars_only(axes)
