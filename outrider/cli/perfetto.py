"""A request's trace as a file for https://ui.perfetto.dev or chrome://tracing."""

import json
from collections.abc import Sequence
from typing import Any, TextIO

from outrider.protocol.messages import Interval
from outrider.protocol.stages import Track

# From top to bottom.
_TRACKS = (Track.ORCHESTRATOR, Track.NETWORK, Track.DRAFT, Track.TARGET)


def write_trace(file: TextIO, intervals: Sequence[Interval]) -> None:
    """Writes intervals in Chrome's Trace Event Format: a process a track, a thread a lane."""
    trace = {"displayTimeUnit": "ms", "traceEvents": trace_events(intervals)}
    json.dump(trace, file, separators=(",", ":"))


def trace_events(intervals: Sequence[Interval]) -> list[dict[str, Any]]:
    """Complete events ("X", in microseconds), after the names of processes and threads."""
    tracks = _in_order([*_TRACKS, *(one.track for one in intervals)])
    lanes = _in_order([(one.track, one.lane) for one in intervals])
    events: list[dict[str, Any]] = []
    for track, pid in tracks.items():
        events += _named("process", track, pid, 0, pid)
    for (track, lane), tid in lanes.items():
        events += _named("thread", lane, tracks[track], tid, tid)
    events += [
        {
            "ph": "X",
            "name": one.name,
            "pid": tracks[one.track],
            "tid": lanes[one.track, one.lane],
            "ts": one.begin_ns / 1000,
            "dur": one.duration_ns / 1000,
            "args": one.counts,
        }
        for one in intervals
    ]
    return events


def _in_order(keys: Sequence[Any]) -> dict[Any, int]:
    """Numbers keys from 1 on, in the order of their first appearance."""
    return {key: number for number, key in enumerate(dict.fromkeys(keys), start=1)}


def _named(kind: str, name: str, pid: int, tid: int, place: int) -> list[dict[str, Any]]:
    """Events that name a process or thread, and sort it."""
    of = {"ph": "M", "pid": pid, "tid": tid}
    return [
        {**of, "name": f"{kind}_name", "args": {"name": name}},
        {**of, "name": f"{kind}_sort_index", "args": {"sort_index": place}},
    ]
