from __future__ import annotations

import random

import pytest

from orchestrator.policy.cost_model import PairState, Plan
from orchestrator.policy.estimates import Acceptance, CostFilter, best_length, expected_tokens
from orchestrator.step import DraftSource, DraftState, StepRecord

MS = 1_000_000
IDLE, WORK, AFTER_HIT = (0, 0), (1, 0), (1, 1)
Kind = tuple[int, int]


def seen(*passes: tuple[int, Kind, float], token_ms: float = 0.0) -> CostFilter:
    """After passes of so many tokens, with a draft that works meanwhile or not, of so many ms."""
    errors = (1.0, 0.05 if token_ms else 0.2, 1.0, 1.0)  # as those of `PairState`
    costs = CostFilter(errors, (0.03, 0.003, 0.003, 0.003), token_ms * MS)
    chance = random.Random(0)
    for num_tokens, kind, ms in passes:
        costs.observe((1, num_tokens, *kind), chance.uniform(0.95, 1.05) * ms * MS)
    return costs


def ms(costs: CostFilter, num_tokens: int, kind: Kind) -> float:
    counts = (1, num_tokens, *kind)
    return sum(cost * count for cost, count in zip(costs.costs, counts, strict=True)) / MS


SLOWER = 1.4


@pytest.mark.parametrize("many", [IDLE, WORK])
def test_a_machine_that_was_slow_for_a_while_is_held_against_neither_kind(many: Kind) -> None:
    """Many steps of one kind while it is; then few of the other, when it is not."""
    passes = {IDLE: (1, IDLE, 30.0), WORK: (2, WORK, 35.0)}
    few = passes[WORK if many == IDLE else IDLE]
    slow = (*passes[many][:2], SLOWER * passes[many][2])
    costs = seen(*[*passes.values()] * 20, *[slow] * 40, *[few] * 6, token_ms=2)
    assert ms(costs, 1, IDLE) == pytest.approx(30, rel=0.2)
    assert ms(costs, 2, WORK) == pytest.approx(35, rel=0.2)


def test_work_after_a_hit_is_told_apart_from_work_after_a_miss() -> None:
    """On shared cores a draft that missed may not begin, and costs nothing."""
    steps = [(1, WORK, 29.0), (2, AFTER_HIT, 100.0), (1, IDLE, 28.0)]
    costs = seen(*steps * 10, token_ms=4)
    assert ms(costs, 1, WORK) == pytest.approx(29, rel=0.1)
    assert ms(costs, 2, AFTER_HIT) == pytest.approx(100, rel=0.1)


def test_one_step_that_was_disturbed_changes_little() -> None:
    costs = seen(*[(1, IDLE, 30.0)] * 10)
    before = ms(costs, 1, IDLE)
    costs.observe((1, 1, 0, 0), 3000 * MS)
    assert before < ms(costs, 1, IDLE) < 1.15 * before


@pytest.mark.parametrize("kind", [IDLE, WORK])
def test_wide_passes_tell_what_a_token_costs(kind: Kind) -> None:
    costs = seen(*[(1, kind, 30.0), (9, kind, 110.0)] * 10, token_ms=1)
    assert ms(costs, 8, kind) - ms(costs, 1, kind) == pytest.approx(70, rel=0.15)


def test_no_cost_is_negative() -> None:
    costs = seen(*[(1, IDLE, 30.0), (8, WORK, 20.0)] * 20)
    assert min(costs.costs) >= 0


def test_those_who_share_a_pass_learn_as_much_as_one_alone() -> None:
    alone, together = seen((1, IDLE, 30.0)), seen((1, IDLE, 30.0))
    for _ in range(8):
        alone.observe((1, 1, 0, 0), 40 * MS)
        for _ in range(4):
            together.observe((1, 1, 0, 0), 40 * MS, share=1 / 4)
    assert ms(together, 1, IDLE) == pytest.approx(ms(alone, 1, IDLE), rel=0.02)


def test_drafting_is_thought_of_as_proportional_until_another_length_is_seen() -> None:
    state = PairState()

    def draft(length: int, draft_ms: float) -> None:
        state.observe(
            StepRecord((0,), length, 0, DraftSource.DRAFTED, DraftState.ACTIVE,
                       draft_ns=int(draft_ms * MS), verify_ns=40 * MS), Plan(miss_length=length)
        )  # fmt: skip

    draft(3, 30)
    assert state.draft_ns(6) == pytest.approx(60 * MS)
    for _ in range(30):
        draft(1, 22)
        draft(6, 32)
    assert state.draft_ns(11) == pytest.approx(42 * MS, rel=0.1)


def verified(verify_ms: float, server_ms: float, is_pipelined: bool = False) -> StepRecord:
    return StepRecord(
        (0,), draft_state=DraftState.IDLE, verify_ns=int(verify_ms * MS),
        server_ns=int(server_ms * MS), is_pipelined=is_pipelined,
    )  # fmt: skip


def test_results_that_are_late_now_and_then_do_not_make_a_target_distant() -> None:
    state = PairState()
    for number in range(100):
        state.observe(verified(90 if number % 5 == 4 else 31, 30), Plan())
        assert not state.has_high_latency
    for _ in range(20):
        state.observe(verified(80, 30), Plan())
    assert state.has_high_latency
    state.observe(verified(31, 30), Plan())
    assert not state.has_high_latency


def test_a_pipelined_verification_says_nothing_of_the_network() -> None:
    state = PairState()
    for _ in range(20):
        state.observe(verified(80, 30), Plan())
    before = state.network_ns
    state.observe(verified(5, 30, is_pipelined=True), Plan())
    assert state.network_ns == before


def test_the_prefill_tells_how_distant_the_target_is_and_nothing_of_costs() -> None:
    state = PairState()
    prefill = StepRecord((0,), is_prefill=True, verify_ns=500 * MS, server_ns=480 * MS)
    state.observe(prefill, Plan())
    assert state.num_idle_steps == 0
    assert state.has_high_latency
    state.observe(verified(50, 30), Plan())
    assert state.idle_goodput == pytest.approx(1 / (30 * MS))


def test_lengths_and_tokens() -> None:
    assert best_length(0.5, 0.2) == 2  # the third is worth an eighth of a token
    assert best_length(0.9, 0.0) == 16
    assert best_length(0.1, 0.2) == 0
    assert expected_tokens(0.5, 2) == pytest.approx(1.75)
    assert expected_tokens(1.0, 3) == pytest.approx(4, rel=0.01)


def test_what_the_draft_says_of_its_tokens_counts_until_lengths_differ() -> None:
    state = PairState()
    state.reset_draft(token_ns=1.0 * MS)
    state.observe(
        StepRecord((0,), 1, 0, DraftSource.DRAFTED, DraftState.ACTIVE,
                   draft_ns=5 * MS, verify_ns=40 * MS), Plan()
    )  # fmt: skip
    assert state.draft_ns(4) == pytest.approx(8 * MS)


def test_a_cost_that_is_forgotten_is_soon_learned_again() -> None:
    costs = seen(*[(1, IDLE, 30.0), (2, WORK, 45.0)] * 20, token_ms=2)
    for _ in range(100):
        costs.forget(2, 0.02)
    assert ms(costs, 2, WORK) < 36
    costs.observe((1, 2, 1, 0), 45 * MS)
    assert ms(costs, 2, WORK) > 42
    assert ms(costs, 1, IDLE) == pytest.approx(30, rel=0.1)


def test_the_rate_may_be_higher_as_long_as_little_is_known() -> None:
    assert Acceptance(0.5, 25.0, 0.98).bound(1.0) == pytest.approx(0.6)
    assert Acceptance(0.0, 8.0, 0.98).bound(1.0) == 0.0
