"""One answer as JSON, with its trace, and what a page says of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from outrider.cli.pages.section import Section
from outrider.cli.pages.shares import by_track, percent
from outrider.cli.pages.tables import table
from outrider.client.stream import GenerationStream
from outrider.protocol.stages import Stage, Track

# From top to bottom, as a message travels; what the draft does ahead has a lane of its own.
AHEAD = "draft, ahead"
LANES = (Track.ORCHESTRATOR, Track.NETWORK, Track.DRAFT, AHEAD, Track.TARGET)

_MEANINGS = {str(stage): stage.meaning for stage in Stage}
_OURS = {str(stage) for stage in Stage if stage.track is Track.ORCHESTRATOR}

Interval = Mapping[str, Any]


def record(prompt: str, stream: GenerationStream) -> dict[str, Any]:
    """What `outrider generate --json` prints, once the stream has ended.

    Raises:
        OutriderError: the call failed.
    """
    pieces = [asdict(piece) for piece in stream]
    generation = stream.result
    trace = [asdict(interval) for interval in generation.trace]
    return {"prompt": prompt, **generation.to_dict(), "pieces": pieces, "trace": trace}


def lane_of(one: Interval) -> str | None:
    """Where an interval is drawn: not at all if its parts are, or if the loop only waits in it."""
    track, name = str(one["track"]), one["name"]
    if track == Track.ORCHESTRATOR:
        return track if name in _OURS else None
    if track == Track.NETWORK or name in ("queue", "forward", "sample"):
        return track
    return AHEAD if name == "predraft" else None


def answer(request: Mapping[str, Any]) -> list[Section]:
    """The text, where its time went, and its steps."""
    return [_text(request), _shares(request), _steps(request["trace"])]


def _text(request: Mapping[str, Any]) -> Section:
    latency, usage, counts = request["latency"], request["usage"], request["speculation"]
    num_tokens = usage["num_output_tokens"]
    speed = f"{num_tokens} tokens in {latency['wall_ns'] / 1e9:.2f} s"
    if latency["tpot_ns"]:
        speed += (
            f": the first after {latency['ttft_ns'] / 1e6:.0f} ms, then one in "
            f"{latency['tpot_ns'] / 1e6:.1f} ms, {1e9 / latency['tpot_ns']:.1f} a second"
        )
    findings = [f"{speed} (prompt: {usage['num_prompt_tokens']} tokens)."]
    if counts["num_draft_tokens"]:
        findings.append(
            f"{counts['num_accepted_tokens']} of {counts['num_draft_tokens']} draft tokens were "
            f"accepted, so that {num_tokens} tokens took "
            f"{num_tokens - counts['num_accepted_tokens']} passes of the target."
        )
    if request["draft_failure"]:
        findings.append(f"The draft failed: {request['draft_failure']}")
    counts = {
        "num_steps_with_draft_tokens" if n == "num_steps" else n: c for n, c in counts.items()
    }
    rows = [[name.replace("_", " "), count] for name, count in counts.items()]
    return Section(
        "The text",
        findings,
        details=[table("all counts", [], rows)],
        prompt=request["prompt"],
        pieces=request["pieces"],
    )


def _shares(request: Mapping[str, Any]) -> Section:
    latency = request["latency"]
    path, wall_ns = latency["critical_path"], latency["wall_ns"]
    tracks = sorted(by_track(path).items(), key=lambda item: -item[1])
    shares = {str(track): time / wall_ns for track, time in tracks}
    told = ", ".join(f"{track} {percent(share, 1)}" for track, share in shares.items())
    tables = [
        table(
            title,
            ["stage", "what happens", "ms", "share"],
            (
                (stage, _MEANINGS.get(stage, ""), f"{ns / 1e6:.1f}", percent(ns / wall_ns, 1))
                for stage, ns in sorted(found.items(), key=lambda item: -item[1])
            ),
        )
        for title, found in (("critical path", path), ("hidden behind it", latency["hidden"]))
        if found
    ]
    return Section(
        "Where did the time go?", [f"The critical path: {told}."], tables=tables, shares=shares
    )


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval as it is drawn, in milliseconds."""

    lane: int
    track: str
    begin: float
    width: float
    is_queue: bool
    title: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """Bars in lanes; `ends` of steps are drawn across all lanes."""

    lanes: list[str]
    bars: list[Bar]
    ends: list[float]
    duration: float

    @property
    def scale(self) -> float:
        """Pixels for each millisecond: as wide as a screen, and wider if there are many steps."""
        return max(880.0, min(40.0 * len(self.ends), 20_000.0)) / (self.duration or 1.0)

    @property
    def width(self) -> int:
        return round(self.duration * self.scale) + 60

    @property
    def ticks(self) -> list[int]:
        """Whole milliseconds, at least 80 pixels apart."""
        distances = (digit * 10**zeros for zeros in range(9) for digit in (1, 2, 5))
        distance = next(each for each in distances if each * self.scale >= 80)
        return list(range(0, round(self.duration) + 1, distance))


def _steps(trace: list[Interval]) -> Section:
    steps = [one for one in trace if one["lane"] == "steps"]
    ends = [(step["begin_ns"] + step["duration_ns"]) / 1e6 for step in steps]
    bars = {
        (lane, one["begin_ns"], one["duration_ns"]): Bar(
            LANES.index(lane),
            one["track"],
            one["begin_ns"] / 1e6,
            one["duration_ns"] / 1e6,
            one["name"] == "queue",
            f"{one['lane']}, {one['name']}: {one['duration_ns'] / 1e6:.2f} ms",
        )
        for one in trace
        if (lane := lane_of(one))
    }
    rows = (
        (
            str(number),
            f"{step['begin_ns'] / 1e6:.1f}",
            f"{step['duration_ns'] / 1e6:.1f}",
            str(step["counts"]["draft_tokens"]),
            str(step["counts"]["accepted_tokens"]),
            step["name"],
        )
        for number, step in enumerate(steps, start=1)
    )
    headings = ["step", "begins at, ms", "takes, ms", "draft tokens", "accepted", ""]
    return Section(
        "Step by step",
        details=[table(f"all {len(steps)} steps, with draft tokens or without", headings, rows)],
        timeline=Timeline(list(map(str, LANES)), list(bars.values()), ends, max(ends, default=0.0)),
    )
