from __future__ import annotations

import pytest

from orchestrator.policy.cost_model import PairState, Plan
from orchestrator.policy.draft_policy import FixedLength, StepContext
from orchestrator.step import DraftSource, DraftState, StepRecord

CONTEXT = StepContext(DraftState.ACTIVE)
STEP = StepRecord((0,), 5, 0, DraftSource.DRAFTED, DraftState.ACTIVE, draft_ns=10**9, verify_ns=7)


@pytest.mark.parametrize("length", [0, 1, 5])
def test_every_length_is_the_same_whatever_steps_show(length: int) -> None:
    policy = FixedLength(PairState(), length)
    for _ in range(20):
        decision = policy.decide(CONTEXT)
        lengths = {
            decision.predraft_length,
            decision.miss_length,
            decision.lookup_length,
        }
        assert lengths == {length}
        assert decision.drafts == (length > 0)
        assert not decision.keeps_up
        policy.observe(STEP)


def test_other_texts_learn_from_it() -> None:
    state = PairState()
    FixedLength(state, 5).observe(STEP)
    assert state.draft_ns(5) == pytest.approx(10**9)
    assert state.acceptance.rate < 0.5


def test_a_distant_target_runs_ahead_or_gets_verifications_early() -> None:
    state = PairState()
    distant = StepRecord((0,), draft_state=DraftState.IDLE, verify_ns=10**8, server_ns=10**7)
    state.observe(distant, Plan())
    alone, drafting = (FixedLength(state, length).decide(CONTEXT) for length in (0, 3))
    assert (alone.runs_ahead, alone.pipelines) == (True, False)
    assert (drafting.runs_ahead, drafting.pipelines) == (False, True)
