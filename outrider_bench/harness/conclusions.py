"""Conclusions from the figures: costs, and the loop model compared with the measurement."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from draft_service.settings import DEFAULT_MIN_CONFIDENCE
from outrider_bench.harness.sections import (
    CURVE_TEXTS,
    GREEDY,
    PIPELINED,
    REJECTION,
    SEQUENTIAL,
    SHARED_NOISE,
)
from outrider_bench.models.costs import cost_table, decode_ms_per_token, fit_times
from outrider_bench.models.figures import TARGET_ONLY
from outrider_bench.models.loop_model import (
    Place,
    Replay,
    Times,
    best_fan_out,
    best_speedup,
    chosen_texts,
    draft_for_nothing,
    draft_twice_as_fast,
    flat_in_k,
    replay,
    what_if,
)

Texts = Sequence[Sequence[Place]]

CHOSEN_ACCEPTANCES = (0.8, 0.95)
CHANGES_ON_OWN_HOSTS: dict[str, Callable[[Times], Times]] = {
    "as measured": lambda times: times,
    "draft twice as fast": draft_twice_as_fast,
    "verification flat in k": flat_in_k,
    "both": lambda times: flat_in_k(draft_twice_as_fast(times)),
    "draft for nothing": draft_for_nothing,
}


def conclude(sections: Mapping[str, Any], num_predrafts: int) -> dict[str, Any]:
    """All conclusions that the sections that were run allow."""
    found: dict[str, Any] = {}
    lengths, trace = sections.get("lengths"), sections.get("trace")
    if not lengths or not _has_steps(lengths):
        return found
    target_ms = decode_ms_per_token(lengths[TARGET_ONLY])
    found["costs"] = cost_table(lengths[SEQUENTIAL], target_ms)
    if not trace:
        return found
    times = {
        mode: fit_times(
            lengths[mode],
            lengths[SEQUENTIAL],
            target_ms,
            trace["draft_pass_ms"],
            trace["target_pass_ms"],
        )
        for mode in (SEQUENTIAL, PIPELINED)
    }
    counts = {SEQUENTIAL: 0, PIPELINED: num_predrafts}
    texts = read_texts(trace[GREEDY]["texts"])
    curve_texts = read_texts(trace[CURVE_TEXTS]["texts"])
    found["times"] = {mode: dataclasses.asdict(of_mode) for mode, of_mode in times.items()}
    found["predicted"] = [
        _beside(mode, k, figures, best_fan_out(curve_texts, times[mode], k, counts[mode]))
        for mode in times
        for k, figures in lengths[mode].items()
    ]
    found["what_if"] = speedups_if(texts, times, num_predrafts)
    found["on_own_hosts"] = speedups_on_own_hosts(texts, times, num_predrafts)
    found["table"] = table_hits(trace, times[PIPELINED], lengths[PIPELINED], num_predrafts)
    return found


def _has_steps(lengths: Mapping[str, Any]) -> bool:
    """Whether there were draft tokens at every length."""
    return all(
        "counts" in found for mode in (SEQUENTIAL, PIPELINED) for found in lengths[mode].values()
    )


def _beside(mode: str, k: int, measured: Any, predicted: Replay) -> dict[str, Any]:
    return {
        "mode": mode,
        "k": k,
        "measured_ms_per_token": round(decode_ms_per_token(measured), 2),
        "predicted_ms_per_token": round(predicted.ms_per_token, 2),
        "measured_hit_rate": measured["ratios"]["table_hit_rate"],
        "predicted_hit_rate": round(predicted.hit_rate, 3),
    }


def speedups_if(
    texts: Texts, times: Mapping[str, Times], num_predrafts: int
) -> dict[str, dict[str, float]]:
    """Speedups over the target alone with other times, each at its best draft length."""
    ways = {mode: what_if(times[mode]) for mode in (SEQUENTIAL, PIPELINED)}
    return {
        name: _both_modes(texts, ways[SEQUENTIAL][name], ways[PIPELINED][name], num_predrafts)
        for name in ways[SEQUENTIAL]
    }


def speedups_on_own_hosts(
    texts: Texts, times: Mapping[str, Times], num_predrafts: int
) -> dict[str, dict[str, dict[str, float]]]:
    """The same on hosts that share nothing, also for drafts of chosen acceptance.

    Simulated hosts share the memory of one machine, which slows the pipelined loop's
    verifications; in the sequential loop the target has it to itself, as on a separate host.
    """
    own = times[SEQUENTIAL]
    undisturbed = {name: getattr(own, name) for name in ("verify", "verify_per_token")}
    pipelined = dataclasses.replace(times[PIPELINED], **undisturbed)
    drafts: dict[str, tuple[Texts, float]] = {"the draft": (texts, DEFAULT_MIN_CONFIDENCE)}
    for acceptance in CHOSEN_ACCEPTANCES:
        # A draft that knows only how often it is right has no reason to end early.
        drafts[f"accepted {acceptance}"] = (chosen_texts(acceptance), 0.0)
    return {
        draft: {
            name: _both_modes(seen, change(own), change(pipelined), num_predrafts, confidence)
            for name, change in CHANGES_ON_OWN_HOSTS.items()
        }
        for draft, (seen, confidence) in drafts.items()
    }


def _both_modes(
    texts: Texts,
    sequential: Times,
    pipelined: Times,
    num_predrafts: int,
    min_confidence: float = DEFAULT_MIN_CONFIDENCE,
) -> dict[str, float]:
    turn, turn_k = best_speedup(texts, sequential, 0, min_confidence)
    ahead, ahead_k = best_speedup(texts, pipelined, num_predrafts, min_confidence)
    return {
        SEQUENTIAL: round(turn, 3),
        f"k {SEQUENTIAL}": turn_k,
        PIPELINED: round(ahead, 3),
        f"k {PIPELINED}": ahead_k,
    }


def table_hits(
    trace: Mapping[str, Any], times: Times, lengths: Mapping[int, Any], num_predrafts: int
) -> dict[str, dict[int, float]]:
    """The speculation cache's hit rate by sampling rule and draft length, by the loop model.

    Texts, models, cache and times are the same; the difference is how well the draft can
    guess the target's token.
    """
    return {
        rule: {
            k: round(replay(read_texts(trace[rule]["texts"]), times, k, num_predrafts).hit_rate, 3)
            for k in lengths
        }
        for rule in (GREEDY, SHARED_NOISE, REJECTION)
    }


def read_texts(stored: Sequence[Sequence[Sequence[float]]]) -> Texts:
    """The texts of a result's trace."""
    return [[Place.read(place) for place in text] for text in stored]
