"""The questions that a result of `outrider bench` answers, and its answers.

Names are those of `outrider_bench/harness/sections.py`, which this package does not import.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from outrider.cli.pages.section import Section
from outrider.cli.pages.shares import by_track, percent
from outrider.cli.pages.tables import Table, table, tables
from outrider.protocol.stages import Stage, Track

ALONE, SEQUENTIAL, PIPELINED = "target only", "sequential", "pipelined"

_FOREIGN = {
    "transformers": "transformers, generate",
    "transformers assisted": "transformers, assisted generation",
}
WAYS = {
    **_FOREIGN,
    ALONE: "target alone",
    "k = 0": "pair, no draft tokens (k = 0)",
    "prompt lookup, no draft": "prompt lookup, no draft",
    "one process": "pair in one process",
    SEQUENTIAL: "pair, sequential",
    PIPELINED: "pair, pipelined",
}
SYSTEMS = {
    ALONE: "target alone",
    "both on the target's host": "pair, draft on the target's core",
    "two hosts": "pair, draft on another core",
}
LEGS = {"draft": "the draft", "target": "the target", "both": "draft and target"}
_MODES = (SEQUENTIAL, PIPELINED)

Figures = Mapping[str, Any]


def questions(document: Figures) -> list[Section]:
    """A section for each question to which there are figures, in the order of interest."""
    sections = document["sections"]
    made = [make(sections[name]) for name, make in _QUESTIONS if sections.get(name)]
    if costs := document.get("costs"):  # of draft lengths, which come last
        made[-1].details += tables("costs of a sequential step, by k", costs)
    return made


def _how_fast(modes: Figures) -> Section:
    section = Section("How fast?", plots=["modes"])
    ways = next(iter(modes.values()))
    if {ALONE, PIPELINED} <= ways.keys():
        alone, pair = ways[ALONE], ways[PIPELINED]
        speedups = {_sampling(name): found[PIPELINED]["speedup"] for name, found in modes.items()}
        times = "; ".join(f"{_times(speedup)}, {name}" for name, speedup in speedups.items())
        section.findings = [
            f"Pipelined, the pair takes {pair['ms_per_token']:.1f} ms a token, and the target "
            f"alone {alone['ms_per_token']:.1f} ms: {times} (medians of {_texts(alone)}).",
            _same_texts(modes),
        ]
    headings = ["", "ms a token", *map(_sampling, modes)]
    rows = (
        (
            WAYS.get(name, name),
            f"{way['ms_per_token']:.1f}",
            *(f"{found[name]['speedup']:.2f}x" for found in modes.values()),
        )
        for name, way in ways.items()
    )
    section.tables = [table("speed, target alone = 1", headings, rows)]
    section.details = [_all_ways(modes)]
    return section


def _same_texts(found: Figures) -> str:
    num_different = sum(
        way["num_different"] or 0
        for ways in found.values()
        for name, way in ways.items()
        if name not in _FOREIGN
    )
    if num_different:
        return f"{num_different} of our texts DIFFER from the target's own."
    return "Every text of ours is the target's own, token by token."


def _where_time_goes(modes: Figures) -> Section:
    ways = next(iter(modes.values()))
    paths = {
        name: ways[name]["critical_path_ms_per_token"]
        for name in (ALONE, *_MODES)
        if "critical_path_ms_per_token" in ways.get(name, ())
    }
    tracks = {name: by_track(path) for name, path in paths.items()}
    section = Section("Where does the time go?", plots=["stages"])
    if PIPELINED in tracks:
        whole = sum(tracks[PIPELINED].values())
        parts = [
            f"{percent(ms / whole)} in the {track}" for track, ms in _by_size(tracks[PIPELINED])
        ]
        section.findings = [
            f"Of the {whole:.1f} ms that a token takes on the pipelined pair's critical path, "
            f"{_listed(parts)} pass."
        ]
    rows = (
        (WAYS[name], *(f"{ms:.1f}" for ms in found.values()), f"{sum(found.values()):.1f}")
        for name, found in tracks.items()
    )
    section.tables = [table("ms a token, greedy", ["", *Track, "all"], rows)]
    stages = [stage for stage in Stage if any(stage in path for path in paths.values())]
    section.details = [
        table(
            "ms a token, by stage",
            ["stage", "what happens", *(WAYS[name] for name in paths)],
            (
                (stage, stage.meaning, *(f"{path.get(stage, 0):.2f}" for path in paths.values()))
                for stage in stages
            ),
        )
    ]
    return section


def _distance(found: Figures) -> Section:
    section = Section("What does distance cost?", plots=["rtt"])
    near = found["draft"]["0"]
    points = list(found["draft"])
    farthest = points[-1]
    parts = [
        f"{by_rtt[farthest][PIPELINED]['speedup']:.2f}x with {farthest} ms more to {LEGS[leg]}"
        for leg, by_rtt in found.items()
    ]
    section.findings = [
        f"Against the target alone over the same network, the pipelined pair is at "
        f"{near[PIPELINED]['speedup']:.2f}x without added round trips, and at {_listed(parts)}."
    ]
    by_leg = {leg: {"0": near, **by_rtt} for leg, by_rtt in found.items()}
    rows = (
        (
            f"to {LEGS[leg]}, {mode}",
            *(f"{by_leg[leg][rtt][mode]['speedup']:.2f}x" for rtt in points),
        )
        for leg in found
        for mode in _MODES
    )
    headings = ["added round trip", *(f"{rtt} ms" for rtt in points)]
    section.tables = [table("speed, target alone = 1", headings, rows)]
    section.details = [_all_ways(found)]
    return section


def _sessions(found: Figures) -> Section:
    section = Section("How many sessions?", plots=["capacity"])
    alone, pair = found[ALONE], found["two hosts"]
    levels = list(alone)
    few, many = levels[0], levels[-1]
    section.findings = [
        f"{many} sessions together get {alone[many]:.0f} tokens a second from the target alone, "
        f"where {few} gets {alone[few]:.0f}. From the pair, with its draft on another core, it is "
        f"{_times(pair[many] / alone[many], 'as many')} for {many} and "
        f"{_times(pair[few] / alone[few], 'as many')} for {few}."
    ]
    rows = (
        (SYSTEMS.get(system, system), *(f"{speeds[level]:.0f}" for level in levels))
        for system, speeds in found.items()
    )
    section.tables = [table("tokens a second, all sessions together", ["sessions", *levels], rows)]
    return section


def _better_draft(found: Figures) -> Section:
    section = Section("What would a better draft give?", plots=["acceptance"])
    rates = list(found[PIPELINED])
    parts = [
        f"{_times(found[PIPELINED][rate]['speedup'])} if it is right with probability {rate}"
        for rate in rates[-2:]
    ]
    section.findings = [
        f"A draft that costs what this one costs makes the pipelined pair {_listed(parts)}."
    ]
    section.tables = [_curve("speed by the probability that a draft token is right", found)]
    section.details = [_all_ways(found)]
    return section


def _lengths(found: Figures) -> Section:
    section = Section("How many draft tokens a step?", plots=["lengths"])
    best, way = max(found[PIPELINED].items(), key=lambda item: item[1]["speedup"])
    section.findings = [
        f"Of fixed draft lengths without prompt lookup, k = {best} is fastest: "
        f"{_times(way['speedup'])}, pipelined."
    ]
    section.tables = [_curve("speed by draft length, target alone = 1", found)]
    section.details = [_all_ways(found)]
    return section


def _curve(title: str, found: Figures) -> Table:
    points = list(found[PIPELINED])
    rows = (
        (WAYS[mode], *(f"{found[mode][point]['speedup']:.2f}x" for point in points))
        for mode in _MODES
    )
    return table(title, ["", *points], rows)


def _all_ways(found: Figures) -> Table:
    """A row for everything that was timed."""
    headings = ("", "ms a token", "first token, ms", "speed", "texts that differ",
                "accepted", "k", "tokens a step", "cache hits")  # fmt: skip
    rows = (
        (
            name,
            way["ms_per_token"],
            way["first_token_ms"],
            f"{way['speedup']:.2f}x",
            way["num_different"],
            *(way.get("ratios", {}).get(ratio) for ratio in _RATIOS),
        )
        for name, way in _ways(found)
    )
    return table("all that was timed", headings, rows)


_RATIOS = (
    "draft_acceptance_rate",
    "mean_draft_length",
    "mean_acceptance_length",
    "table_hit_rate",
)


def _ways(found: Figures, place: str = "") -> Iterator[tuple[str, Figures]]:
    for name, part in found.items():
        where = f"{place}, {name}" if place else name
        if "ms_per_token" in part:
            yield where, part
        else:
            yield from _ways(part, where)


def _texts(way: Figures) -> str:
    return f"{way['num_prompts']} texts of {way['num_tokens'] // way['num_prompts']} tokens"


def _sampling(temperature: str) -> str:
    return "greedy" if temperature == "temperature 0" else f"at {temperature}"


def _times(ratio: float, what: str = "as fast") -> str:
    return f"{ratio:.2f} times {what}"


def _by_size(found: Mapping[Track, float]) -> list[tuple[Track, float]]:
    return sorted(found.items(), key=lambda item: -item[1])


def _listed(parts: list[str]) -> str:
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


_QUESTIONS: tuple[tuple[str, Callable[[Figures], Section]], ...] = (
    ("modes", _how_fast),
    ("modes", _where_time_goes),
    ("rtt", _distance),
    ("capacity", _sessions),
    ("acceptance", _better_draft),
    ("lengths", _lengths),
)
