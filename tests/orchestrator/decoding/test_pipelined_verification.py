"""Verifications that are sent before the result on the one before is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest

from orchestrator.decoding.decoder import Step, decode
from orchestrator.decoding.drafted import Drafted
from orchestrator.decoding.interfaces import Ahead
from orchestrator.decoding.proposer import Proposer
from orchestrator.policy.draft_length import FixedLength
from orchestrator.policy.experience import Experience
from orchestrator.policy.round_trip import Distance
from orchestrator.reporting.latency import CriticalPath
from outrider.protocol.messages import Predraft
from tests.orchestrator.decoding.test_decoder import (
    as_much_as_wanted,
    mostly_right_model,
    plain_decoding,
    repeating_model,
    run,
    target_model,
    text,
)
from tests.support.fakes import FakeDrafter, FakeVerifier, Far, NextToken


async def steps_with(draft_model: NextToken, distance: Distance | None) -> list[Step]:
    drafter = FakeDrafter(draft_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, 2, 60, num_predrafts=2, distance=distance)
    assert text(steps) == plain_decoding([1, 2, 3], 60)
    return steps


async def test_with_a_perfect_draft_all_that_is_predrafted_is_sent_ahead() -> None:
    steps = await steps_with(target_model, Far())
    # The first round has nothing before it; the last tokens have no room for a draft.
    assert all(step.drafted.is_pipelined and step.drafted.is_cache_hit for step in steps[2:-1])
    assert not any(step.drafted.replaces_stale for step in steps)


async def test_what_assumed_a_wrong_result_is_replaced() -> None:
    steps = await steps_with(mostly_right_model, Far())
    assert any(step.drafted.is_pipelined for step in steps)
    assert any(step.drafted.replaces_stale for step in steps)
    for before, step in pairwise(steps[1:]):
        was_accepted = before.num_accepted_tokens == before.num_draft_tokens
        assert was_accepted or not step.drafted.is_pipelined
        assert not (step.drafted.is_pipelined and step.drafted.replaces_stale)


@pytest.mark.parametrize("distance", [None, Distance(), Distance(network_ns=1e6, server_ns=1e6)])
async def test_to_a_near_target_nothing_is_sent_ahead(distance: Distance | None) -> None:
    steps = await steps_with(mostly_right_model, distance)
    assert not any(step.drafted.is_pipelined or step.drafted.replaces_stale for step in steps)


async def test_the_draft_follows_what_was_sent_ahead() -> None:
    drafter = FakeDrafter(mostly_right_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, 3, num_predrafts=2, distance=Far())
    committed = [1, 2, 3, *text(steps)]
    for tokens, draft in drafter.followed:
        assert tokens == committed[: len(tokens)]
        assert draft == drafter._draft(tokens, len(draft))
    num_predrafted = sum(step.drafted.is_cache_hit for step in steps)
    assert len(drafter.followed) == num_predrafted


async def test_what_stands_in_the_text_is_sent_ahead_rather_than_what_is_predrafted() -> None:
    drafter = FakeDrafter(repeating_model, num_predrafted=lambda _: 1)
    steps = await run(drafter, 8, 90, 2, looks_up=True, target=repeating_model, distance=Far())
    assert text(steps) == plain_decoding([1, 2, 3], 90, repeating_model)
    ahead = [step for step in steps if step.drafted.is_pipelined and step.drafted.was_looked_up]
    assert max(step.num_accepted_tokens for step in ahead) > 1


async def test_without_lengths_above_none_nothing_is_sent_ahead() -> None:
    lengths = FixedLength(0, Experience())
    verifier, drafter = FakeVerifier(target_model), FakeDrafter(target_model)
    steps = decode([1], 20, verifier, drafter, lengths, CriticalPath(), 4, distance=Far())
    assert not [step async for step in steps if step.drafted.is_pipelined]


class GrowingDrafter(FakeDrafter):
    """Has predrafted as much as the test says."""

    def __init__(self) -> None:
        super().__init__(target_model)
        self.table: Predraft | None = None
        self.waiting: list[asyncio.Future[None]] = []

    def grow(self, *draft: int) -> None:
        self.table = Predraft(0, (7, 8), draft)
        for future in self.waiting:
            future.set_result(None)
        self.waiting = []

    def likeliest(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        return self.table

    def growth(self) -> asyncio.Future[None]:
        self.waiting.append(asyncio.get_running_loop().create_future())
        return self.waiting[-1]


async def foreseeing(drafter: FakeDrafter, server_seconds: float) -> asyncio.Task[Ahead]:
    """What is sent ahead to a target that takes so long, while 7 is verified behind 5, 6."""
    distance = Distance(network_ns=1e9, server_ns=server_seconds * 1e9)
    lengths = FixedLength(3, Experience())
    proposer = Proposer(drafter, lengths, 2, False, CriticalPath(), distance)
    proposer.prefill([5])
    await proposer.propose([5], 4)
    foresight = proposer.foresight([5, 6], Drafted((7,)), room=20)
    assert foresight is not None

    async def result() -> Ahead:
        return await foresight()

    return asyncio.create_task(result())


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_while_the_target_is_busy_a_longer_draft_is_waited_for() -> None:
    drafter = GrowingDrafter()
    ahead = await foreseeing(drafter, server_seconds=1000)
    for draft in ((), (1,), (1, 2)):
        if draft:
            drafter.grow(*draft)
        await settle()
        assert not ahead.done()
    drafter.grow(1, 2, 3)
    assert await ahead == Ahead([5, 6, 7, 8], (1, 2, 3))


async def test_a_target_that_would_wait_gets_what_there_is() -> None:
    drafter = GrowingDrafter()
    drafter.grow(1)
    ahead = await foreseeing(drafter, server_seconds=0.001)
    assert await ahead == Ahead([5, 6, 7, 8], (1,))  # without more growth


def test_the_distance_is_what_the_target_does_not_account_for() -> None:
    distance = Distance()
    distance.observe(30_000_000, 10_000_000, is_pipelined=False)
    assert (distance.network_ns, distance.server_ns) == (20e6, 10e6)
    assert distance.is_far
    # What was sent ahead was waited for less: that says nothing about the way.
    distance.observe(1_000_000, 20_000_000, is_pipelined=True)
    assert (distance.network_ns, distance.server_ns) == (20e6, 12e6)
    assert distance.patience_ns(is_sent_ahead=False) == 12e6
    assert distance.patience_ns(is_sent_ahead=True) == -8e6
    for _ in range(20):
        distance.observe(11_000_000, 10_000_000, is_pipelined=False)
    assert not distance.is_far


def test_a_result_that_is_held_up_makes_no_target_far() -> None:
    distance = Distance()
    distance.observe(17_000_000, 16_000_000, False)
    for waited_ns in (17_000_000, 100_000_000, 100_000_000, 17_000_000):
        distance.observe(waited_ns, 16_000_000, False)
        assert not distance.is_far
    assert distance.network_ns == 1e6
    for _ in range(10):
        distance.observe(36_000_000, 16_000_000, False)
    assert distance.is_far  # the way is longer now
    distance.observe(17_000_000, 16_000_000, False)
    assert not distance.is_far
    elsewhere = Distance()
    elsewhere.observe(36_000_000, 16_000_000, False)
    assert elsewhere.is_far
