"""A request's trace as a file for https://ui.perfetto.dev or chrome://tracing."""

import json
from collections.abc import Sequence
from typing import Any, TextIO

from outrider.protocol.messages import Interval

# From top to bottom.
_TRACKS = ("orchestrator", "network", "draft", "target")


def write_trace(file: TextIO, intervals: Sequence[Interval]) -> None:
    """Writes intervals in Chrome's Trace Event Format: a process a track, a thread a lane."""
    events = trace_events(intervals)
    json.dump({"displayTimeUnit": "ms", "traceEvents": events}, file, separators=(",", ":"))


def trace_events(intervals: Sequence[Interval]) -> list[dict[str, Any]]:
    """Complete events ("X", in microseconds), after the names of processes and threads."""
    tracks = _in_order([*_TRACKS, *(one.track for one in intervals)])
    lanes = _in_order([(one.track, one.lane) for one in intervals])
    events: list[dict[str, Any]] = []
    for track, pid in tracks.items():
        events.append(_named("process_name", pid, 0, {"name": track}))
        events.append(_named("process_sort_index", pid, 0, {"sort_index": pid}))
    for (track, lane), tid in lanes.items():
        events.append(_named("thread_name", tracks[track], tid, {"name": lane}))
        events.append(_named("thread_sort_index", tracks[track], tid, {"sort_index": tid}))
    for one in intervals:
        events.append(
            {
                "ph": "X",
                "name": one.name,
                "pid": tracks[one.track],
                "tid": lanes[one.track, one.lane],
                "ts": one.begin_ns / 1000,
                "dur": one.duration_ns / 1000,
                "args": one.counts,
            }
        )
    return events


def _in_order(keys: Sequence[Any]) -> dict[Any, int]:
    """Numbers keys from 1 on, in the order of their first appearance."""
    return {key: number for number, key in enumerate(dict.fromkeys(keys), start=1)}


def _named(kind: str, pid: int, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": args}
