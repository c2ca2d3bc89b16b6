"""What follows from the figures: costs, and the loop model beside what was measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from outrider_bench.costs import cost_table, decode_ms_per_token, fit_times
from outrider_bench.figures import TARGET_ONLY
from outrider_bench.loop_model import Place, Replay, Times, best_speedup, replay, what_if
from outrider_bench.sections import CURVE_TEXTS, GREEDY, IN_TURN, PIPELINED, REJECTION, SHARED_NOISE

Texts = Sequence[Sequence[Place]]


def conclude(sections: Mapping[str, Any], num_branches: int) -> dict[str, Any]:
    """What the sections that were run allow."""
    found: dict[str, Any] = {}
    lengths, trace = sections.get("lengths"), sections.get("trace")
    if not lengths or not _has_steps(lengths):
        return found
    target_ms = decode_ms_per_token(lengths[TARGET_ONLY])
    found["costs"] = cost_table(lengths[IN_TURN], target_ms)
    if not trace:
        return found
    times = {
        mode: fit_times(lengths[mode], lengths[IN_TURN], target_ms, trace["draft_pass_ms"])
        for mode in (IN_TURN, PIPELINED)
    }
    branches = {IN_TURN: 0, PIPELINED: num_branches}
    texts = read_texts(trace[GREEDY]["texts"])
    curve_texts = read_texts(trace[CURVE_TEXTS]["texts"])
    found["times"] = {mode: dataclasses.asdict(of_mode) for mode, of_mode in times.items()}
    found["predicted"] = [
        _beside(mode, k, figures, replay(curve_texts, times[mode], k, branches[mode]))
        for mode in times
        for k, figures in lengths[mode].items()
    ]
    found["what_if"] = speedups_if(texts, times, num_branches)
    found["table"] = table_hits(trace, times[PIPELINED], lengths[PIPELINED], num_branches)
    return found


def _has_steps(lengths: Mapping[str, Any]) -> bool:
    """Whether there were draft tokens at every length."""
    return all(
        "counts" in found for mode in (IN_TURN, PIPELINED) for found in lengths[mode].values()
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
    texts: Texts, times: Mapping[str, Times], num_branches: int
) -> dict[str, dict[str, float]]:
    """Speedups over the target alone with other times, each at its best draft length."""
    in_turn, pipelined = what_if(times[IN_TURN]), what_if(times[PIPELINED])
    # In turn the target has the machine's memory for itself, as on a host of its own.
    undisturbed = {name: getattr(times[IN_TURN], name) for name in ("verify", "verify_per_token")}
    in_turn["hosts that share nothing"] = times[IN_TURN]
    pipelined["hosts that share nothing"] = dataclasses.replace(times[PIPELINED], **undisturbed)
    found = {}
    for name in in_turn:
        turn, turn_k = best_speedup(texts, in_turn[name], 0)
        ahead, ahead_k = best_speedup(texts, pipelined[name], num_branches)
        found[name] = {
            IN_TURN: round(turn, 3),
            f"k {IN_TURN}": turn_k,
            PIPELINED: round(ahead, 3),
            f"k {PIPELINED}": ahead_k,
        }
    return found


def table_hits(
    trace: Mapping[str, Any], times: Times, lengths: Mapping[int, Any], num_branches: int
) -> dict[str, dict[int, float]]:
    """The table's hit rate by rule of sampling and draft length, by the model of the loop.

    Texts, models, table and times are the same: what differs is how well the draft
    can guess which token the target takes.
    """
    return {
        rule: {
            k: round(replay(read_texts(trace[rule]["texts"]), times, k, num_branches).hit_rate, 3)
            for k in lengths
        }
        for rule in (GREEDY, SHARED_NOISE, REJECTION)
    }


def read_texts(stored: Sequence[Sequence[Sequence[float]]]) -> Texts:
    """Texts as they stand in a result's trace."""
    return [[Place.read(place) for place in text] for text in stored]
