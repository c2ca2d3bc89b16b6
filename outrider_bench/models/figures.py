"""Figures of runs: medians over prompts, counts over all of them."""

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from outrider.client.results import Generation
from outrider.protocol.messages import SpeculationStats
from outrider_bench.runs import Run

TARGET_ONLY = "target only"


def summed(reports: Sequence[Generation]) -> SpeculationStats:
    """The sums of the reports' counts."""
    total = SpeculationStats()
    for report in reports:
        total.add(report.speculation)
    return total


def ratios(counts: SpeculationStats) -> dict[str, Any]:
    """Ratios by name; None where they are undefined.

    Steps with looked-up tokens count only in ratios per step.
    """
    num_drafted = counts.num_steps - counts.num_lookup_steps
    draft_tokens = counts.num_draft_tokens - counts.num_lookup_draft_tokens
    accepted = counts.num_accepted_tokens - counts.num_lookup_accepted_tokens
    accepted_on_miss = accepted - counts.num_cache_hit_accepted_tokens
    at_least = list(itertools.accumulate(reversed(counts.acceptance_histogram)))[::-1]
    return {
        "draft_acceptance_rate": _ratio(accepted, draft_tokens),
        "mean_draft_length": _ratio(draft_tokens, num_drafted),
        "mean_acceptance_length": _per_step(counts.num_accepted_tokens, counts.num_steps),
        "acceptance_rate_per_position": [_ratio(n, counts.num_steps) for n in at_least[1:]],
        "table_hit_rate": _ratio(
            counts.num_cache_hits, counts.num_cache_hits + counts.num_cache_misses
        ),
        "tokens_per_step_on_hit": _per_step(
            counts.num_cache_hit_accepted_tokens, counts.num_cache_hits
        ),
        "tokens_per_step_on_miss": _per_step(accepted_on_miss, counts.num_cache_misses),
        "lookup_step_rate": _ratio(counts.num_lookup_steps, counts.num_steps),
        "lookup_acceptance_rate": _ratio(
            counts.num_lookup_accepted_tokens, counts.num_lookup_draft_tokens
        ),
        "predrafted_in_vain": _ratio(
            counts.num_predrafted_tokens - counts.num_cache_hit_accepted_tokens,
            counts.num_predrafted_tokens,
        ),
    }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 3) if whole else None


def _per_step(accepted: int, steps: int) -> float | None:
    """Tokens a step, the target's own included."""
    return round(1 + accepted / steps, 3) if steps else None


def figures(rows: Sequence[Mapping[str, Run]], baseline: str = TARGET_ONLY) -> dict[str, Any]:
    """Each way's figures, by name, from runs of all ways on each prompt.

    A speedup is the median over prompts of the ratio to the baseline's time per token.
    `num_different` counts texts that differ from the baseline's.
    """
    return {name: _way_figures(rows, name, baseline) for name in rows[0]}


def _way_figures(rows: Sequence[Mapping[str, Run]], name: str, baseline: str) -> dict[str, Any]:
    runs = [row[name] for row in rows]
    reports = [run.report for run in runs if run.report is not None]
    found: dict[str, Any] = {
        "ms_per_token": round(statistics.median(run.ms_per_token for run in runs), 2),
        "first_token_ms": round(statistics.median(run.first_token_ms for run in runs), 1),
        "speedup": median_ratio(rows, baseline, name),
        "num_different": sum(
            list(row[name].token_ids) != list(row[baseline].token_ids) for row in rows
        ),
        "per_prompt_ms": [round(run.ms_per_token, 2) for run in runs],
    }
    if reports:
        counts = summed(reports)
        num_tokens = found["num_tokens"] = sum(len(run.token_ids) for run in runs)
        found["num_prompts"] = len(runs)
        paths = [report.latency.critical_path for report in reports]
        found["critical_path_ms_per_token"] = _stages(paths, num_tokens)
        found["hidden_ms_per_token"] = _stages([r.latency.hidden for r in reports], num_tokens)
        if counts.num_steps:
            found["counts"] = asdict(counts)
            found["ratios"] = ratios(counts)
    return found


def median_ratio(rows: Sequence[Mapping[str, Run]], slow: str, fast: str) -> float:
    """How many times as fast `fast` is, the median over prompts."""
    return round(statistics.median(r[slow].ms_per_token / r[fast].ms_per_token for r in rows), 3)


def _stages(paths: Sequence[Mapping[str, int]], num_tokens: int) -> dict[str, float]:
    total: Counter[str] = Counter()
    for path in paths:
        total.update(path)
    return {stage: round(ns / 1e6 / num_tokens, 3) for stage, ns in total.most_common()}


def stage_ms(found: Mapping[str, Any], *stages: str) -> float:
    """The time per token of each stage of the critical path, from a way's figures."""
    path: dict[str, float] = found["critical_path_ms_per_token"]
    return sum(path.get(stage, 0.0) for stage in stages)
