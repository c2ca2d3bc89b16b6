from __future__ import annotations

from orchestrator.reporting.speculation import Speculation
from orchestrator.step import DraftSource, DraftState, StepRecord


def test_steps_are_counted_by_what_became_of_their_draft_tokens() -> None:
    counts = Speculation()
    for step in (
        StepRecord((1,), is_prefill=True),
        StepRecord((1, 2), 3, 1, DraftSource.CACHED, is_pipelined=True, num_predrafted_tokens=8),
        StepRecord((1, 2, 3), 2, 2, DraftSource.DRAFTED, is_cache_miss=True),
        StepRecord((1,), 2, 0, DraftSource.LOOKUP, replaces_stale=True),
        StepRecord((1,), is_cache_miss=True, num_predrafted_tokens=11),
        StepRecord((1,), draft_state=DraftState.IDLE),
        StepRecord((1,), draft_state=DraftState.IDLE, is_prefill=True),
        StepRecord((1,), draft_state=DraftState.PREFILLING),
        *2 * [StepRecord((1,), draft_state=DraftState.ACTIVE)],
    ):
        counts.count(step)
    assert counts == Speculation(
        num_steps=3,
        num_draft_tokens=7,
        num_accepted_tokens=3,
        acceptance_histogram=[1, 1, 1, 0],
        length_histogram=[0, 0, 2, 1],
        num_cache_hits=1,
        num_cache_hit_accepted_tokens=1,
        num_predrafted_tokens=11,
        num_lookup_steps=1,
        num_lookup_draft_tokens=2,
        num_pipelined_steps=1,
        num_stale_steps=1,
        num_cache_misses=2,
        num_idle_steps=1,
        num_active_steps=2,
    )
    assert [counts.drafted_at(i) for i in range(3)] == [3, 3, 1]
    assert [counts.accepted_at(i) for i in range(3)] == [2, 1, 0]
