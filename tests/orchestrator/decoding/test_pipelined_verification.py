"""Verifications that are sent before the previous result is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest

from orchestrator.decoding.interfaces import PipelinedRequest, Pipelining
from orchestrator.decoding.proposer import Proposer
from orchestrator.policy.draft_policy import Decision
from orchestrator.step import DraftSource, DraftTokens, StepRecord
from outrider.protocol.messages import Predraft
from tests.support.fakes import FakeDrafter, FakeVerifier, NextToken
from tests.support.loop import (
    ScriptedPolicy,
    as_much_as_wanted,
    far,
    mostly_right_model,
    plain_decoding,
    repeating_model,
    run,
    target_model,
    text,
    wants,
)


async def steps_with(draft_model: NextToken, decision: Decision) -> list[StepRecord]:
    drafter = FakeDrafter(draft_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, decision, 60, num_predrafts=2)
    assert text(steps) == plain_decoding([1, 2, 3], 60)
    return steps


async def test_with_a_perfect_draft_every_verification_is_pipelined() -> None:
    steps = await steps_with(target_model, far(2))
    # The first round has nothing before it; the last tokens have no room for a draft.
    assert all(step.is_pipelined and step.source is DraftSource.CACHED for step in steps[2:-1])
    assert not any(step.replaces_stale for step in steps)


async def test_what_assumed_a_wrong_result_is_replaced() -> None:
    steps = await steps_with(mostly_right_model, far(2))
    assert any(step.is_pipelined for step in steps)
    assert any(step.replaces_stale for step in steps)
    for before, step in pairwise(steps[1:]):
        was_accepted = before.num_accepted_tokens == before.num_draft_tokens
        assert was_accepted or not step.is_pipelined
        assert not (step.is_pipelined and step.replaces_stale)


@pytest.mark.parametrize("decision", [wants(2), wants(0, pipelines=True)])
async def test_nothing_is_pipelined_against_the_decision_or_without_draft_tokens(
    decision: Decision,
) -> None:
    steps = await steps_with(mostly_right_model, decision)
    assert not any(step.is_pipelined or step.replaces_stale for step in steps)


async def test_the_draft_follows_pipelined_verifications() -> None:
    drafter = FakeDrafter(mostly_right_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, far(3), num_predrafts=2)
    committed = [1, 2, 3, *text(steps)]
    for tokens, draft in drafter.followed:
        assert tokens == committed[: len(tokens)]
        assert draft == drafter._draft(tokens, len(draft))
    assert len(drafter.followed) == sum(step.source is DraftSource.CACHED for step in steps)


async def test_what_stands_in_the_text_is_pipelined_rather_than_a_predraft() -> None:
    drafter = FakeDrafter(repeating_model, num_predrafted=lambda _: 1)
    steps = await run(drafter, far(8), 90, 2, looks_up=True, target=repeating_model)
    assert text(steps) == plain_decoding([1, 2, 3], 90, repeating_model)
    pipelined = [s for s in steps if s.is_pipelined and s.source is DraftSource.LOOKUP]
    assert max(step.num_accepted_tokens for step in pipelined) > 1


class GrowingDrafter(FakeDrafter):
    """Has predrafted as much as the test says."""

    def __init__(self) -> None:
        super().__init__(lambda tokens: 7)
        self.predraft: Predraft | None = None
        self.waiting: list[asyncio.Future[None]] = []

    def grow(self, *draft: int) -> None:
        self.predraft = Predraft(0, (7, 8), draft)
        for future in self.waiting:
            future.set_result(None)
        self.waiting = []

    def after_full_acceptance(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        return self.predraft

    def growth(self) -> asyncio.Future[None]:
        self.waiting.append(asyncio.get_running_loop().create_future())
        return self.waiting[-1]


async def next_request(drafter: FakeDrafter, seconds: float) -> asyncio.Task[PipelinedRequest]:
    """What is sent to a target that is busy for so long, while 7 is verified behind 5, 6."""
    decision = wants(3, miss_length=1, pipelines=True, pipeline_wait_ns=seconds * 1e9)
    proposer = Proposer(drafter, ScriptedPolicy(decision), num_predrafts=2)
    verifier = FakeVerifier(target_model)
    await proposer.propose([5], 20, verifier)
    draft, lookahead = await proposer.propose([5, 6], 20, verifier)
    assert draft.token_ids == (7,)
    assert isinstance(lookahead, Pipelining)

    async def result() -> PipelinedRequest:
        return await lookahead.next_request()

    return asyncio.create_task(result())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def sent(*draft: int) -> PipelinedRequest:
    return PipelinedRequest([5, 6, 7, 8], DraftTokens(draft, DraftSource.CACHED, is_pipelined=True))


async def test_while_the_target_is_busy_a_longer_draft_is_waited_for() -> None:
    drafter = GrowingDrafter()
    request = await next_request(drafter, seconds=1000)
    for draft in ((), (1,), (1, 2)):
        if draft:
            drafter.grow(*draft)
        await settle()
        assert not request.done()
    drafter.grow(1, 2, 3)
    assert await request == sent(1, 2, 3)


async def test_a_target_that_would_wait_gets_what_there_is() -> None:
    drafter = GrowingDrafter()
    drafter.grow(1)
    request = await next_request(drafter, seconds=0.001)
    assert await request == sent(1)  # without more growth
