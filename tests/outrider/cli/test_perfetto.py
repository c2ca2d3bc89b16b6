from __future__ import annotations

import io
import json

from outrider.cli.perfetto import write_trace
from outrider.protocol.messages import Interval


def test_tracks_are_processes_and_lanes_are_threads() -> None:
    file = io.StringIO()
    write_trace(
        file,
        [
            Interval("draft", "session", "propose", 1500, 2000, {"draft_tokens": 3}),
            Interval("target", "session", "verify", 4000, 500),
            Interval("draft", "predrafts 1", "predraft", 4000, 500),
        ],
    )
    events = json.loads(file.getvalue())["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    threads = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"
    }
    assert list(processes.values()) == ["orchestrator", "network", "draft", "target"]
    slices = [e for e in events if e["ph"] == "X"]
    assert [(processes[e["pid"]], threads[e["pid"], e["tid"]]) for e in slices] == [
        ("draft", "session"),
        ("target", "session"),
        ("draft", "predrafts 1"),
    ]
    first = slices[0]
    assert (first["name"], first["ts"], first["dur"]) == ("propose", 1.5, 2.0)
    assert first["args"] == {"draft_tokens": 3}
