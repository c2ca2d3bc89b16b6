"""The draft's state: what it is told when it is wanted or not, and that it may be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from orchestrator.decoding import draft as draft_module
from orchestrator.decoding.decoder import decode
from orchestrator.decoding.proposer import Proposer
from orchestrator.policy.cost_model import PairState
from orchestrator.policy.draft_policy import FixedLength
from orchestrator.step import DraftSource, DraftState
from outrider.errors import OutriderError
from outrider.protocol.messages import PredraftPlan, Proposal
from tests.support.fakes import FakeDrafter, FakeVerifier
from tests.support.loop import (
    as_much_as_wanted,
    in_steps,
    plain_decoding,
    run,
    target_model,
    text,
    unrelated_model,
    wants,
)

ACTIVE, IDLE, CATCHING_UP = DraftState.ACTIVE, DraftState.IDLE, DraftState.CATCHING_UP
PREFILLING, ABSENT, LOST = DraftState.PREFILLING, DraftState.ABSENT, DraftState.LOST


class SlowVerifier(FakeVerifier):
    """Others have a moment meanwhile."""

    async def verify(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
        await asyncio.sleep(0)
        return await super().verify(*args, **kwargs)  # type: ignore[arg-type]


async def test_the_draft_reads_the_prompt_beside_the_target() -> None:
    drafter = FakeDrafter(target_model)
    steps = await run(drafter, 3)
    assert drafter.calls[0] == ([1, 2, 3], 0)
    assert [step.draft_state for step in steps[:2]] == [PREFILLING, ACTIVE]


@pytest.mark.parametrize("keeps_up", [False, True])
async def test_a_draft_that_is_not_wanted_reads_the_prompt_only_to_keep_up(keeps_up: bool) -> None:
    drafter = FakeDrafter(target_model, num_predrafted=as_much_as_wanted)
    decision, slow = wants(0, keeps_up=keeps_up), SlowVerifier(target_model)
    steps = await run(drafter, decision, num_predrafts=3, target=slow)
    assert drafter.calls == ([([1, 2, 3], 0)] if keeps_up else [])
    assert drafter.followed == []
    assert {step.num_draft_tokens for step in steps} == {0}
    assert {step.draft_state for step in steps[2:]} == {IDLE}


async def test_a_draft_that_is_not_wanted_is_told_once() -> None:
    drafter = FakeDrafter(unrelated_model)
    policy = in_steps(*map(wants, [2, 2, 2, 0, 0, 0, 2, 0, 0]))
    steps = await run(drafter, policy, num_predrafts=2)
    assert [step.num_draft_tokens for step in steps[1:8]] == [2, 2, 0, 0, 0, 0, 0]
    states = [step.draft_state for step in steps[1:9]]
    assert states == [ACTIVE, ACTIVE, IDLE, IDLE, IDLE, CATCHING_UP, IDLE, IDLE]
    # It becomes idle; when it is wanted again it reads, and is not waited for; it becomes idle.
    assert [(len(tokens), draft) for tokens, draft in drafter.followed] == [
        (6, ()),
        (9, ()),
        (10, ()),
    ]


@pytest.mark.parametrize("num_predrafts", [2, 0])
async def test_a_draft_that_was_idle_catches_up_while_the_target_works(num_predrafts: int) -> None:
    policy = in_steps(*map(wants, [2, 2, 0, 0, 2]))
    steps = await run(FakeDrafter(unrelated_model), policy, 16, num_predrafts)
    assert [step.num_draft_tokens for step in steps[1:9]] == [2, 0, 0, 0, 0, 0, 2, 2]
    states = [step.draft_state for step in steps[1:9]]
    assert states == [ACTIVE, IDLE, IDLE, *[CATCHING_UP] * 3, ACTIVE, ACTIVE]


async def test_a_draft_that_has_caught_up_earlier_is_used_at_once() -> None:
    policy = in_steps(*map(wants, [2, 2, 0, 2]))
    drafter = FakeDrafter(unrelated_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, policy, 16, num_predrafts=2)
    states = [step.draft_state for step in steps[2:6]]
    assert states == [IDLE, CATCHING_UP, ACTIVE, ACTIVE]  # once a predraft was there


@pytest.mark.parametrize("num_predrafts", [2, 0])
async def test_an_idle_draft_reads_nothing_before_it_is_wanted(num_predrafts: int) -> None:
    drafter = FakeDrafter(target_model)
    policy = in_steps(*map(wants, [0] * 5 + [2]))
    steps = await run(drafter, policy, 30, num_predrafts, target=SlowVerifier(target_model))
    reading, *others = drafter.calls
    assert (len(reading[0]), reading[1]) == (3 + 5, 0)  # five steps went by
    # The prefill is not waited for, though no predraft can be there.
    assert steps[5].draft_state is PREFILLING
    assert steps[5].num_draft_tokens == 0
    assert others
    assert any(step.num_draft_tokens for step in steps[6:])


async def test_steps_beside_a_draft_that_reads_the_prompt_are_told_apart() -> None:
    is_read = asyncio.Event()

    class Reading(FakeDrafter):
        async def propose(
            self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
        ) -> Proposal:
            await is_read.wait()
            return await super().propose(tokens, num_speculative_tokens, plan)

    class Verifier(SlowVerifier):
        async def verify(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            if len(self.calls) == 3:
                is_read.set()
                await asyncio.sleep(0)
            return await super().verify(*args, **kwargs)

    decision = wants(0, keeps_up=True)
    steps = await run(Reading(unrelated_model), decision, 12, target=Verifier(target_model))
    assert [step.draft_state for step in steps[:4]] == [PREFILLING] * 4
    assert {step.draft_state for step in steps[4:]} == {IDLE}


@pytest.mark.parametrize("answers", [0, 1, 3])
async def test_a_draft_that_lives_and_never_answers_is_lost(
    monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    class Stuck(FakeDrafter):
        num_asked = 0

        async def propose(
            self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
        ) -> Proposal:
            self.num_asked += 1
            if self.num_asked > answers:
                await asyncio.Event().wait()
            return await super().propose(tokens, num_speculative_tokens, plan)

    monkeypatch.setattr(draft_module, "LONGEST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(draft_module, "LONGEST_PREFILL_SECONDS", 0.01)
    drafter = Stuck(unrelated_model)
    steps = await run(drafter, 2, max_length=12)
    assert text(steps) == plain_decoding([1, 2, 3], 12)
    assert drafter.num_asked == answers + 1  # it is not asked again
    assert drafter.is_closed  # and works for no text


@pytest.mark.parametrize(
    ("make", "states"),
    [
        (lambda: None, {ABSENT}),
        (lambda: FakeDrafter(unrelated_model, fails_at=3), {PREFILLING, ACTIVE, LOST}),
        (lambda: FakeDrafter(unrelated_model, max_context_length=8), {PREFILLING, ACTIVE, IDLE}),
        (lambda: FakeDrafter(unrelated_model, max_context_length=3), {IDLE}),
    ],
)
async def test_steps_without_a_draft_that_can_be_asked_are_told_apart(
    make: Callable[[], FakeDrafter | None], states: set[DraftState]
) -> None:
    """What the target takes in them is what it takes alone."""
    drafter = make()
    steps = await run(drafter, 1, 30)
    assert {step.draft_state for step in steps} == states
    assert drafter is None or states != {IDLE} or not drafter.calls


async def test_beyond_the_drafts_context_the_target_continues_alone() -> None:
    drafter = FakeDrafter(target_model, max_context_length=12)
    steps = await run(drafter, 4)
    assert text(steps) == plain_decoding([1, 2, 3], 40)
    assert all(len(tokens) + k <= 12 for tokens, k in drafter.calls)


async def test_steps_with_tokens_from_the_text_are_time_to_catch_up_too() -> None:
    policy = in_steps(*map(wants, [2, 2, 0, 2]))
    steps = await run(FakeDrafter(unrelated_model), policy, 40, 2, looks_up=True, target=repeating)
    assert [step.draft_state for step in steps[3:7]] == [*[CATCHING_UP] * 3, ACTIVE]
    assert any(step.source is DraftSource.LOOKUP for step in steps[3:6])


def repeating(tokens: Sequence[int]) -> int:
    return (5, 6)[len(tokens) % 2]


async def test_a_prefill_that_nothing_waits_for_and_never_ends_loses_the_draft(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stuck(FakeDrafter):
        async def propose(
            self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
        ) -> Proposal:
            await asyncio.Event().wait()
            raise AssertionError

    class Verifier(SlowVerifier):
        async def verify(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            if len(self.calls) == 4:
                await asyncio.wait_for(is_closed.wait(), 10)
            return await super().verify(*args, **kwargs)

    class Drafter(Stuck):
        def close(self, reason: OutriderError | None = None) -> None:
            super().close(reason)
            is_closed.set()

    is_closed = asyncio.Event()
    monkeypatch.setattr(draft_module, "LONGEST_PREFILL_SECONDS", 0.01)
    decision = wants(2, miss_length=0)
    steps = await run(Drafter(unrelated_model), decision, 12, 2, target=Verifier(target_model))
    assert [step.draft_state for step in steps[:4]] == [PREFILLING] * 4
    assert steps[-1].draft_state is LOST


@pytest.mark.parametrize(
    ("drafter", "states"),
    [(None, {ABSENT}), (FakeDrafter(unrelated_model, max_context_length=2), {IDLE})],
)
async def test_a_fixed_length_without_a_draft_that_can_be_asked_is_the_target_alone(
    drafter: FakeDrafter | None, states: set[DraftState]
) -> None:
    pair = PairState()
    proposer = Proposer(drafter, FixedLength(pair, 4))
    verifier = FakeVerifier(target_model)
    steps = [step async for step in decode([1, 2, 3], 30, verifier, proposer)]
    assert {step.draft_state for step in steps} == states
    assert pair.num_idle_steps == len(steps) - 1  # all but the prefill
    assert drafter is None or not drafter.calls
