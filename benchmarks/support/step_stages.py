"""The stages of each step of a traced text."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def steps_of(trace: Sequence[Any]) -> Iterator[dict[str, float]]:
    """The stages of each step behind the first two, in milliseconds."""
    ends = [each.begin_ns + each.duration_ns for each in trace if each.lane == "steps"]
    stages: list[defaultdict[str, float]] = [defaultdict(float) for _ in ends]
    place = {"critical path": 0, "session": 0}
    for each in sorted(trace, key=lambda each: each.begin_ns + each.duration_ns):
        if each.lane not in place:
            continue
        end = each.begin_ns + each.duration_ns
        while place[each.lane] < len(ends) and end > ends[place[each.lane]]:
            place[each.lane] += 1
        if place[each.lane] == len(ends):
            break
        service = {"draft": "draft", "target": "verify"}.get(each.track)
        name = each.name if service is None else _part(service, each.name)
        stages[place[each.lane]][name] += each.duration_ns / 1e6
    for step in stages[2:]:
        yield finished(step)


def _part(service: str, name: str) -> str:
    """The stage of a service's interval: a part of its work on a message, or all of it."""
    parts = {"queue": "queue", "forward": "pass", "sample": "pass"}
    return f"{service} {parts.get(name, 'total')}"


def finished(step: Mapping[str, float]) -> dict[str, float]:
    """A step's stages that do not overlap, and the sum of the passes that it waited for."""
    stages = {name: ms for name, ms in step.items() if " " not in name}
    models = 0.0
    for service in ("draft", "verify"):
        own = [name for name in stages if name.startswith(f"{service}_")]
        if not own:  # predrafted
            continue
        wait = sum(stages.pop(name) for name in own)
        parts = {name: step.get(f"{service} {name}", 0.0) for name in ("total", "queue", "pass")}
        models += parts["pass"]
        stages[f"{service} stream"] = wait - parts["total"]
        stages[f"{service} queue"] = parts["queue"]
        stages[f"{service} pass"] = parts["pass"]
        stages[f"{service} handler"] = parts["total"] - parts["queue"] - parts["pass"]
    return {**stages, "models": models}
