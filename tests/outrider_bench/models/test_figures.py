"""What is made of runs: counts, medians, costs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from outrider.client.results import Generation, Latency, Usage
from outrider.protocol.messages import SpeculationStats
from outrider_bench.harness.capacity import unread
from outrider_bench.models.costs import (
    StepCost,
    break_even_acceptance,
    cost_table,
    decode_ms_per_token,
    tokens_per_step,
)
from outrider_bench.models.figures import figures, ratios, summed
from outrider_bench.runs import Run, Task


def report(path: dict[str, int] | None = None, **counts: Any) -> Generation:
    """A report with these counts, and a critical path in milliseconds."""
    names = ("num_steps", "num_draft_tokens", "num_accepted_tokens")
    known = {**dict.fromkeys(names, 0), "acceptance_histogram": [], **counts}
    stages = {stage: ms * 1_000_000 for stage, ms in (path or {}).items()}
    return Generation(
        text="",
        token_ids=[],
        finish_reason="length",
        seed=0,
        usage=Usage(1, 1),
        speculation=SpeculationStats(**known),
        latency=Latency(sum(stages.values()), 0, 0, stages, {}),
    )


def test_counts_are_summed_before_they_are_divided() -> None:
    counts = summed(
        [
            report(
                num_steps=5,
                num_draft_tokens=11,
                num_accepted_tokens=7,
                num_lookup_steps=1,
                num_lookup_draft_tokens=3,
                num_lookup_accepted_tokens=1,
                num_cache_hits=1,
                num_cache_misses=3,
                num_cache_hit_accepted_tokens=2,
                num_predrafted_tokens=10,
                acceptance_histogram=[1, 1, 3],
            ),
            report(num_steps=1, num_draft_tokens=2, num_cache_misses=1, acceptance_histogram=[1]),
        ]
    )
    assert counts.acceptance_histogram == [2, 1, 3]
    assert ratios(counts) == {
        "draft_acceptance_rate": 0.6,
        "mean_draft_length": 2.0,
        "mean_acceptance_length": 2.167,
        "acceptance_rate_per_position": [0.667, 0.5],
        "table_hit_rate": 0.2,
        "tokens_per_step_on_hit": 3.0,
        "tokens_per_step_on_miss": 2.0,
        "lookup_step_rate": 0.167,
        "lookup_acceptance_rate": 0.333,
        "predrafted_in_vain": 0.8,
    }


def test_no_steps_give_no_ratios() -> None:
    found = ratios(summed([report()]))
    assert found.pop("acceptance_rate_per_position") == []
    assert set(found.values()) == {None}


def test_speedups_are_medians_over_prompts_and_texts_are_compared() -> None:
    rows = [
        {"target only": Run([1, 2], 5.0, 10.0), "other": Run([1, 2], 5.0, fast)}
        for fast in (10.0, 5.0, 2.0)
    ]
    rows[1]["other"] = Run([1, 3], 5.0, 5.0)
    found = figures(rows)["other"]
    assert found["speedup"] == 2.0
    assert found["ms_per_token"] == 5.0
    assert found["num_different"] == 1
    assert found["per_prompt_ms"] == [10.0, 5.0, 2.0]


def test_a_step_costs_what_is_left_when_plain_steps_and_the_prompt_are_taken_off() -> None:
    """12 tokens: one with the prompt, 3 steps of k = 2 with 6 accepted, 2 plain steps of 10 ms."""
    path = {"prefill_target": 99, "draft_compute": 24, "verify_compute": 36 + 20}
    path |= {"draft_network": 6, "verify_network": 3}
    generation = report(path, num_steps=3, num_draft_tokens=6, num_accepted_tokens=6)
    row = {"target only": Run([0] * 12, 1.0, 1.0), "way": Run([0] * 12, 1.0, 1.0, generation)}
    found = figures([row])["way"]
    cost = StepCost.of(found, target_ms=10.0)
    assert (cost.k, cost.draft_ms, cost.verify_ms) == pytest.approx((2, 8, 12), rel=1e-3)
    assert cost.other_ms == pytest.approx(3, abs=0.02)
    assert decode_ms_per_token(found) == pytest.approx(89 / 11, rel=1e-3)
    alone = {
        "num_tokens": 11,
        "num_prompts": 1,
        "critical_path_ms_per_token": {"verify_compute": 10 * 10 / 11},
    }
    row_of_table = cost_table({1: {}, 2: found}, alone)[2]
    assert row_of_table["cost_coefficient"] == pytest.approx(0.4)
    # 23 ms a step are 2.3 tokens' worth: 1 + a + a^2 = 2.3.
    assert row_of_table["break_even_acceptance"] == pytest.approx(0.745, abs=0.002)


def test_break_even_is_where_a_step_gives_its_cost() -> None:
    cost = StepCost(k=1, draft_ms=4, verify_ms=11, other_ms=0)
    assert break_even_acceptance(cost, 10.0) == pytest.approx(0.5, abs=1e-3)
    assert break_even_acceptance(cost, 7.0) is None
    assert break_even_acceptance(cost, 100.0) == pytest.approx(0.0, abs=1e-3)
    assert tokens_per_step(1.0, 4) == 5
    assert tokens_per_step(0.5, 2) == pytest.approx(1.75)


def test_no_two_sessions_ask_what_the_target_has_read_already() -> None:
    tasks = [Task("one", 8), Task("two", 8)]
    numbers = itertools.count(1)
    systems = [unread(tasks, numbers) for _ in range(3)]
    beginnings = {task.prompt[:5] for system in systems for task in system}
    assert len(beginnings) == 6
    # Beside that all have the same to do.
    for system in systems:
        assert [(task.prompt[6:], task.seed) for task in system] == [("one", 0), ("two", 1)]
