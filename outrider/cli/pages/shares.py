"""Stages of a latency report, summed by track, and shares in words."""

from collections.abc import Mapping

from outrider.protocol.stages import Stage, Track

_TRACKS = {str(stage): stage.track for stage in Stage}


def by_track(stages: Mapping[str, float]) -> dict[Track, float]:
    """The time of each track, from that of stages; a stage that has no name here is ours."""
    sums = dict.fromkeys(Track, 0.0)
    for stage, time in stages.items():
        sums[_TRACKS.get(stage, Track.ORCHESTRATOR)] += time
    return sums


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
