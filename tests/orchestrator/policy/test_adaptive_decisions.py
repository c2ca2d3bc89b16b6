"""What the policy decides for single steps, and where texts run at the same time."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import pytest

from orchestrator.policy.adaptive import AdaptivePolicy
from orchestrator.policy.config import PolicyConfig
from orchestrator.policy.cost_model import PairState, Plan
from orchestrator.policy.draft_policy import Decision, StepContext
from orchestrator.step import DraftSource, DraftState, StepRecord

IDLE, ACTIVE = StepContext(DraftState.IDLE), StepContext(DraftState.ACTIVE)
MS = 1_000_000


def record(
    length: int = 0,
    accepted: int = 0,
    ms: float = 40.0,
    state: DraftState = DraftState.ACTIVE,
    source: DraftSource = DraftSource.CACHED,
    **fields: int,
) -> StepRecord:
    source = source if length else DraftSource.NONE
    is_predrafting = state is DraftState.ACTIVE
    fields = {"verify_ns": int(ms * MS), "is_predrafting": is_predrafting, **fields}
    return StepRecord((0,) * (1 + accepted), length, accepted, source, state, **fields)


def test_the_target_alone_is_tried_first_and_the_draft_reads_meanwhile() -> None:
    """Nothing else tells what drafts cost, or cannot be slower than the target alone."""
    first = AdaptivePolicy(PairState()).decide(IDLE)
    assert not first.drafts
    assert first.keeps_up


def test_a_lost_draft_is_not_asked() -> None:
    policy = AdaptivePolicy(PairState())
    for state in (DraftState.ABSENT, DraftState.LOST):
        for _ in range(50):
            decision = policy.decide(StepContext(state))
            assert (decision.drafts, decision.keeps_up) == (False, False)
            policy.observe(record(state=state))


def drafting(
    pair_state: PairState, acceptance: float, num_steps: int = 60, token_ms: int = 1
) -> AdaptivePolicy:
    """A text whose draft works at once, and so often is right."""
    policy, chance = AdaptivePolicy(pair_state), random.Random(1)
    for _ in range(num_steps):
        decision = policy.decide(ACTIVE)
        if not decision.drafts:
            policy.observe(record(state=DraftState.IDLE))
            continue
        length, accepted = min(4, decision.predraft_length), 0
        while accepted < length and chance.random() < acceptance:
            accepted += 1
        policy.observe(record(length, accepted, 42 + token_ms * length))
    return policy


def test_a_text_counts_by_its_tokens_however_texts_take_turns() -> None:
    """Two at the same time, of which one suits the draft, make others start between them."""
    state = PairState()
    good, bad = (AdaptivePolicy(state) for _ in range(2))
    starts = []
    for _ in range(200):
        for policy, accepted in ((good, 2), (bad, 0)):
            policy.decide(ACTIVE)
            policy.observe(record(2, accepted))
            starts.append(AdaptivePolicy(state).decide(ACTIVE).acceptance_rate)
    late = starts[200:]
    assert max(late) - min(late) < 0.1
    # Two tokens of the one are judged for one of the other.
    assert statistics.mean(late) == pytest.approx(2 / 3, abs=0.05)


def test_a_new_text_starts_from_what_others_have_shown() -> None:
    state = PairState(token_ns=4.0 * MS)
    drafting(state, 0.9, token_ms=4)
    assert AdaptivePolicy(state).decide(IDLE).predraft_length >= 3
    for _ in range(16):  # one that suits the draft badly says little of the next one
        drafting(state, 0.0, 100, token_ms=4)
    starts = [AdaptivePolicy(state).decide(IDLE) for _ in range(8)]
    assert sum(start.drafts for start in starts) <= 1  # a probe
    assert not any(start.keeps_up for start in starts)


@pytest.mark.parametrize("acceptance", [0.1, 0.9])
def test_estimates_tell_from_which_acceptance_rate_on_the_draft_works(acceptance: float) -> None:
    state = PairState(token_ns=4.0 * MS)
    policy = drafting(state, acceptance, 300, token_ms=4)
    estimates = policy.estimates()
    assert estimates is not None
    assert estimates.acceptance_rate == pytest.approx(acceptance, abs=0.15)
    assert 0.1 < estimates.sufficient_acceptance_rate < 0.8
    works = estimates.acceptance_rate > estimates.sufficient_acceptance_rate
    # Other decisions are probes.
    assert works == (statistics.mean(policy.decide(ACTIVE).drafts for _ in range(9)) > 0.5)
    assert estimates.target_step_ns == pytest.approx(40 * MS, rel=0.1)
    assert AdaptivePolicy(PairState()).estimates() is None


def test_what_is_worth_no_wait_is_not_waited_for_on_a_miss() -> None:
    def miss_length(draft_ms: float) -> int:
        policy = AdaptivePolicy(PairState(token_ns=1.0 * MS))
        for _ in range(40):
            policy.decide(ACTIVE)
            policy.observe(record(2, 1, 40))
            policy.observe(
                record(1, 1, 40, source=DraftSource.DRAFTED, draft_ns=int(draft_ms * MS),
                       is_cache_miss=True)
            )  # fmt: skip
        for _ in range(2):  # the probe that was due
            policy.observe(record(state=DraftState.IDLE))
            decision = policy.decide(ACTIVE)
        return decision.miss_length

    assert miss_length(40.0) <= 1  # now and then, since it may have changed
    assert miss_length(1.0) > 2


def test_a_draft_under_way_is_waited_for_as_long_as_its_token_is_worth() -> None:
    policy = drafting(PairState(token_ns=1.0 * MS), 1.0)
    # Steps of 46 ms commit some five tokens: a token more is worth nine or ten, and costs one.
    assert policy.decide(ACTIVE).cache_wait_ns == pytest.approx(9.5 * MS, rel=0.2)


def lookups(accepted: bool, token_ms: float) -> Decision:
    """After twenty lookups of six tokens, of which all are accepted, or none."""
    policy = AdaptivePolicy(PairState(token_ns=token_ms * MS))
    for _ in range(20):
        policy.decide(IDLE)
        policy.observe(record(state=DraftState.IDLE))
        ms = 40 + token_ms * 6
        policy.observe(
            record(6, 6 * accepted, ms, DraftState.IDLE, DraftSource.LOOKUP, match_length=6)
        )
    return policy.decide(IDLE)


def test_as_much_is_looked_up_as_is_worth_verifying() -> None:
    assert lookups(accepted=True, token_ms=1).lookup_length == 16
    assert lookups(accepted=False, token_ms=6).lookup_length == 0
    assert AdaptivePolicy(PairState()).decide(IDLE).lookup_length > 0


def test_what_is_looked_up_says_nothing_of_the_draft() -> None:
    policy = AdaptivePolicy(state := PairState())
    for _ in range(40):
        policy.observe(record(6, 0, 40, DraftState.IDLE, DraftSource.LOOKUP, match_length=6))
    assert state.acceptance.rate == PolicyConfig().prior_acceptance
    assert policy.decide(ACTIVE).acceptance_rate == PolicyConfig().prior_acceptance


def test_verifications_are_pipelined_where_the_target_is_distant() -> None:
    state = PairState(token_ns=1.0 * MS)
    policy = drafting(state, 0.9)
    assert not policy.decide(ACTIVE).pipelines
    for _ in range(20):
        policy.observe(record(4, 4, 70, server_ns=40 * MS))
    decision = policy.decide(ACTIVE)
    assert decision.pipelines
    assert decision.pipeline_wait_ns == pytest.approx(40 * MS, rel=0.05)
    later = policy.decide(StepContext(DraftState.ACTIVE, is_pipelined=True))
    assert later.pipeline_wait_ns == pytest.approx(10 * MS, rel=0.05)


def test_a_target_that_runs_ahead_is_interrupted_for_many_looked_up_tokens_only() -> None:
    policy = AdaptivePolicy(state := PairState())
    running = StepContext(DraftState.IDLE, is_running_ahead=True)
    assert policy.decide(running).shortest_lookup == PolicyConfig().shortest_interruption
    assert policy.decide(running).lookup_length > 0
    for _ in range(80):
        state.observe(record(state=DraftState.IDLE, batch_tokens=8, batch_sessions=8), Plan())
    assert policy.decide(running).lookup_length == 0  # others wait for that pass, too
    assert policy.decide(IDLE).lookup_length > 0


def share_passes(
    policies: Sequence[AdaptivePolicy], num_passes: int, chance: random.Random
) -> list[list[int]]:
    """All verify in the same passes of 30 ms and 4 a token; the draft lengths of each pass."""
    passes = []
    for _ in range(num_passes):
        decisions = [policy.decide(ACTIVE) for policy in policies]
        lengths = [max(1, each.miss_length) if each.drafts else 0 for each in decisions]
        batch_tokens = sum(lengths) + len(lengths)
        ms = chance.uniform(0.9, 1.1) * (30 + 4 * batch_tokens)
        for policy, length in zip(policies, lengths, strict=True):
            accepted = 0
            while accepted < length and chance.random() < 0.5:
                accepted += 1
            state = DraftState.ACTIVE if length else DraftState.IDLE
            policy.observe(
                record(length, accepted, ms, state, DraftSource.DRAFTED, draft_ns=MS * length,
                       batch_tokens=batch_tokens, batch_sessions=len(policies))
            )  # fmt: skip
        passes.append(lengths)
    return passes


@pytest.mark.parametrize(("num_sessions", "low", "high"), [(1, 1, 4), (16, 0, 0)])
def test_drafts_give_way_under_load(num_sessions: int, low: int, high: int) -> None:
    """With 16 sessions the weights are paid for, and each token more costs its full price."""
    state = PairState()
    policies = [AdaptivePolicy(state, predrafts=False) for _ in range(num_sessions)]
    passes = share_passes(policies, 200, random.Random(0))
    late = [length for lengths in passes[100:] for length in lengths]
    assert low <= statistics.median(late) <= high
    run_ahead = [policy.decide(IDLE).runs_ahead for policy in policies]
    assert sum(run_ahead) >= num_sessions - 1 if num_sessions > 1 else not any(run_ahead)  # a probe


def test_under_load_one_text_probes_for_all_and_drafts_return_when_it_ends() -> None:
    state, chance = PairState(), random.Random(0)
    policies = [AdaptivePolicy(state, predrafts=False) for _ in range(16)]
    passes = share_passes(policies, 400, chance)[200:]
    drafts = [sum(length > 0 for length in lengths) for lengths in passes]
    assert max(drafts) <= 2
    assert 0 < sum(drafts) < 0.03 * 16 * len(passes)
    starts = [AdaptivePolicy(state).decide(IDLE) for _ in range(16)]
    assert sum(start.drafts for start in starts) <= 1
    assert not any(start.keeps_up for start in starts)  # prompts are not read
    alone = share_passes([AdaptivePolicy(state, predrafts=False)], 400, chance)[200:]
    assert statistics.median(length for [length] in alone) >= 1


@pytest.mark.parametrize(
    ("work_ms", "alone_ms", "fewest", "most"),
    [(200, 30, 0, 30), (68, 60, 45, 60)],
    ids=["draft", "machine"],
)
def test_what_has_slowed_the_target_is_soon_found_out(
    work_ms: float, alone_ms: float, fewest: int, most: int
) -> None:
    """More time beside a draft that did not hold up the target before may have either cause."""
    policy = AdaptivePolicy(PairState(token_ns=4.0 * MS))

    def num_drafting(work_ms: float, alone_ms: float) -> int:
        drafts = 0
        for _ in range(60):
            decision = policy.decide(ACTIVE)
            if decision.drafts and decision.predrafts:
                drafts += 1
                policy.observe(record(1, 1, work_ms))
            elif decision.drafts:
                policy.observe(
                    record(1, 1, alone_ms + 4, source=DraftSource.DRAFTED, draft_ns=40 * MS,
                           is_predrafting=False)
                )  # fmt: skip
            else:
                policy.observe(record(ms=alone_ms, state=DraftState.IDLE))
        return drafts

    assert num_drafting(work_ms=38, alone_ms=30) > 50
    assert fewest <= num_drafting(work_ms, alone_ms) <= most
