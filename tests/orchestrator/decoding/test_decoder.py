"""The loop: its text is the target's own, and its steps are what the policy decides."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from orchestrator.decoding.decoder import decode
from orchestrator.decoding.proposer import Proposer
from orchestrator.reporting.latency import CriticalPath
from orchestrator.step import DraftSource, DraftState
from outrider.errors import ServiceUnavailable
from outrider.protocol.messages import PredraftPlan, Proposal
from tests.support.fakes import FakeDrafter, FakeVerifier, NextToken, nothing_predrafted
from tests.support.loop import (
    ScriptedPolicy,
    as_much_as_wanted,
    far,
    in_steps,
    mostly_right_model,
    plain_decoding,
    repeating_model,
    run,
    target_model,
    text,
    unrelated_model,
    wants,
)


def some_of_it(tokens: Sequence[int]) -> int:
    return (len(tokens) // 2) % 4


CACHES = [nothing_predrafted, as_much_as_wanted, some_of_it]


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("draft_model", [target_model, unrelated_model, mostly_right_model])
@pytest.mark.parametrize("num_predrafted", CACHES)
async def test_output_is_plain_decoding_whatever_the_draft(
    num_predrafted: NextToken, draft_model: NextToken, k: int
) -> None:
    for num_predrafts in (0, 3):
        for decision in (wants(k), far(k)):
            drafter = FakeDrafter(draft_model, num_predrafted=num_predrafted)
            steps = await run(drafter, decision, num_predrafts=num_predrafts)
            assert text(steps) == plain_decoding([1, 2, 3], 40)


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("target", [target_model, repeating_model])
@pytest.mark.parametrize("draft_model", [None, unrelated_model, repeating_model])
async def test_output_is_plain_decoding_with_tokens_from_the_text(
    draft_model: NextToken | None, target: NextToken, k: int
) -> None:
    for num_predrafted in CACHES:
        for decision in (wants(k), far(k)):
            drafter = draft_model and FakeDrafter(draft_model, num_predrafted=num_predrafted)
            steps = await run(drafter, decision, 60, 3, looks_up=True, target=target)
            assert text(steps) == plain_decoding([1, 2, 3], 60, target)


@pytest.mark.parametrize("max_length", range(4, 16))
@pytest.mark.parametrize("num_predrafts", [0, 2])
async def test_never_goes_beyond_max_length(num_predrafts: int, max_length: int) -> None:
    drafter = FakeDrafter(target_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, far(4), max_length, num_predrafts)
    assert text(steps) == plain_decoding([1, 2, 3], max_length)


async def test_a_perfect_draft_is_accepted_whole() -> None:
    steps = await run(FakeDrafter(target_model), 4, max_length=3 + 1 + 5 * 3)
    assert [(s.num_draft_tokens, s.num_accepted_tokens) for s in steps[1:]] == [(4, 4)] * 3
    assert [step.source for step in steps[1:]] == [DraftSource.DRAFTED] * 3


async def test_without_draft_every_step_commits_one_token() -> None:
    steps = await run(None, 4)
    assert {(len(s.token_ids), s.num_draft_tokens) for s in steps} == {(1, 0)}
    assert {step.draft_state for step in steps} == {DraftState.ABSENT}


async def test_the_first_step_is_the_prefill() -> None:
    steps = await run(FakeDrafter(target_model), 2)
    assert [step.is_prefill for step in steps] == [True] + [False] * (len(steps) - 1)


@pytest.mark.parametrize("fails_at", range(8))
@pytest.mark.parametrize("num_predrafted", CACHES)
async def test_a_lost_draft_costs_speed_only(num_predrafted: NextToken, fails_at: int) -> None:
    for decision in (wants(3), far(3)):
        drafter = FakeDrafter(mostly_right_model, fails_at=fails_at, num_predrafted=num_predrafted)
        steps = await run(drafter, decision, num_predrafts=2)
        assert text(steps) == plain_decoding([1, 2, 3], 40)
        assert len(drafter.calls) + len(drafter.followed) == fails_at + 1  # it is not asked again
        assert steps[-1].draft_state is DraftState.LOST


async def test_a_lost_target_is_an_error_after_what_was_committed() -> None:
    committed: list[int] = []
    verifier = FakeVerifier(target_model, fails_at=3)
    with pytest.raises(ServiceUnavailable):
        async for step in decode([1], 40, verifier, Proposer(None, ScriptedPolicy(wants(0)))):
            committed.extend(step.token_ids)
    assert committed == plain_decoding([1], 4)


async def test_the_policy_is_asked_once_a_step_and_told_of_each() -> None:
    num_asked = 0

    def decide(context: object) -> object:
        nonlocal num_asked
        num_asked += 1
        return wants(num_asked % 3)

    policy = ScriptedPolicy(decide)  # type: ignore[arg-type]
    drafter = FakeDrafter(mostly_right_model, num_predrafted=some_of_it)
    steps = await run(drafter, policy, num_predrafts=2, looks_up=True)
    assert policy.records == steps
    assert num_asked == len(steps)


class SlowDrafter(FakeDrafter):
    """Takes a while, which `clock` tells, for the prompt and for each proposal."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(target_model)
        self._clock = clock

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
    ) -> Proposal:
        self._clock.now_ns += 1000 if num_speculative_tokens else 10**9
        return await super().propose(tokens, num_speculative_tokens, plan)


class Clock:
    now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1
        return self.now_ns


async def test_reading_the_prompt_is_not_a_cost_of_drafting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, path = Clock(), None
    monkeypatch.setattr(time, "perf_counter_ns", clock)
    path = CriticalPath()
    steps = await run(SlowDrafter(clock), 3)
    for step in steps:
        path.book(step)
    assert path.stages["prefill_draft"] >= 10**9
    assert all(step.draft_ns < 10**4 for step in steps)
    assert sum(path.stages.values()) == path.wall_ns


@pytest.mark.parametrize("max_new_tokens", [1, 2])
async def test_a_step_without_room_for_draft_tokens_waits_for_no_draft(
    max_new_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter_ns", clock)
    steps = await run(SlowDrafter(clock), 4, max_length=3 + max_new_tokens)
    assert len(steps) == max_new_tokens
    assert not [wait for step in steps for wait in step.waits if wait.stage == "prefill_draft"]


async def test_decisions_that_change_from_step_to_step_leave_the_text_alone() -> None:
    decisions = [wants(k, miss_length=m) for k, m in ((2, 0), (0, 0), (3, 3), (1, 0), (0, 0))]
    for num_predrafted in CACHES:
        drafter = FakeDrafter(mostly_right_model, num_predrafted=num_predrafted)
        steps = await run(drafter, in_steps(*decisions * 8), num_predrafts=2, looks_up=True)
        assert text(steps) == plain_decoding([1, 2, 3], 40)
