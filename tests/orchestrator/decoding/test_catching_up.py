"""A draft that was at rest reads what it has missed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from orchestrator.decoding import fail_safe_drafter as working_drafter
from orchestrator.decoding.decoder import decode
from orchestrator.policy.draft_length import FixedLength
from orchestrator.policy.experience import Experience, StepCost
from orchestrator.reporting.latency import CriticalPath
from outrider.protocol.messages import PredraftPlan, Proposal
from tests.orchestrator.decoding.test_decoder import (
    plain_decoding,
    run,
    target_model,
    text,
    unrelated_model,
)
from tests.support.fakes import FakeDrafter, FakeVerifier


@pytest.mark.parametrize("num_predrafts", [2, 0])
async def test_what_a_draft_takes_to_read_what_it_missed_is_not_what_drafting_takes(
    num_predrafts: int,
) -> None:
    class Scripted(FixedLength):
        lengths = iter([2, 2, 0, 0, *[2] * 40])

        def next_length(self) -> int:
            return next(self.lengths)

        def observe(self, cost: StepCost) -> None:
            costs.append(cost)
            super().observe(cost)

    costs: list[StepCost] = []
    experience, verifier = Experience(), FakeVerifier(target_model)
    drafter, lengths = FakeDrafter(unrelated_model), Scripted(0, experience)
    async for _ in decode(
        [1, 2, 3], 16, verifier, drafter, lengths, CriticalPath(), num_predrafts=num_predrafts
    ):
        pass
    # It reads while the target works, for so many steps; then it is slow.
    assert [cost.num_draft_tokens for cost in costs[:8]] == [2, 0, 0, 0, 0, 0, 2, 2]
    assert [cost.catches_up for cost in costs[:8]] == [False] * 3 + [True] * 3 + [False] * 2
    weight = experience.verify_ns.num_passes
    experience.observe(StepCost(1, 0, 10**9, 10**9, catches_up=True))
    assert experience.verify_ns.num_passes == weight


@pytest.mark.parametrize("answers", [0, 1, 3])
async def test_a_draft_that_lives_and_never_answers_is_lost(
    monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    class Stuck(FakeDrafter):
        num_asked = 0

        async def propose(
            self, tokens: Sequence[int], num_speculative_tokens: int, predraft_plan: PredraftPlan
        ) -> Proposal:
            self.num_asked += 1
            if self.num_asked > answers:
                await asyncio.Event().wait()
            return await super().propose(tokens, num_speculative_tokens, predraft_plan)

    monkeypatch.setattr(working_drafter, "LONGEST_WAIT_SECONDS", 0.01)
    drafter = Stuck(unrelated_model)
    steps = await run(drafter, 2, max_length=12)
    assert text(steps) == plain_decoding([1, 2, 3], 12)
    assert drafter.num_asked == answers + 1  # it is not asked again
    assert drafter.is_closed  # and works for nobody


async def test_nor_is_what_the_target_takes_beside_a_draft_that_reads_the_prompt() -> None:
    is_read = asyncio.Event()

    class Reading(FakeDrafter):
        async def propose(
            self, tokens: Sequence[int], num_speculative_tokens: int, predraft_plan: PredraftPlan
        ) -> Proposal:
            await is_read.wait()
            return await super().propose(tokens, num_speculative_tokens, predraft_plan)

    class Watched(FixedLength):
        is_at_rest = False

        def observe(self, cost: StepCost) -> None:
            costs.append(cost)
            if len(costs) == 3:
                is_read.set()

    costs: list[StepCost] = []
    lengths, verifier = Watched(0, Experience()), FakeVerifier(target_model)
    drafter = Reading(unrelated_model)
    async for _ in decode([1, 2, 3], 12, verifier, drafter, lengths, CriticalPath()):
        await asyncio.sleep(0)
    assert [cost.catches_up for cost in costs[:3]] == [True] * 3
    assert not any(cost.catches_up for cost in costs[4:])
    assert len(costs) > 6


@pytest.mark.parametrize("num_predrafts", [2, 0])
async def test_a_draft_at_rest_reads_nothing_before_it_is_wanted(num_predrafts: int) -> None:
    class Scripted(FixedLength):
        lengths = iter([0] * 5 + [2] * 40)

        def next_length(self) -> int:
            return next(self.lengths)

        def observe(self, cost: StepCost) -> None:
            costs.append(cost)

    costs: list[StepCost] = []
    drafter, verifier = FakeDrafter(target_model), FakeVerifier(target_model)
    lengths, path = Scripted(0, Experience()), CriticalPath()
    async for _ in decode([1, 2, 3], 30, verifier, drafter, lengths, path, num_predrafts):
        await asyncio.sleep(0)
    # The first length is asked for with the prompt, and four steps went by.
    reading, *others = drafter.calls
    assert (len(reading[0]), reading[1]) == (3 + 1 + 4, 0)
    # It is not waited for, and what the target takes beside it is not what it always takes.
    assert costs[4].catches_up
    assert costs[4].num_draft_tokens == 0
    assert others
    assert any(cost.num_draft_tokens for cost in costs[5:])


@pytest.mark.parametrize(
    ("make", "num_with"),
    [
        (lambda: None, 0),
        (lambda: FakeDrafter(unrelated_model, fails_at=3), 3),  # that in which it is lost, too
        (lambda: FakeDrafter(unrelated_model, max_context_length=8), 4),
        (lambda: FakeDrafter(unrelated_model, max_context_length=3), 0),
    ],
)
async def test_a_draft_that_is_not_there_is_at_rest(
    make: Callable[[], FakeDrafter | None], num_with: int
) -> None:
    """Nobody is to take what the target alone takes for what it takes beside a draft."""
    costs: list[StepCost] = []

    class Watched(FixedLength):
        def observe(self, cost: StepCost) -> None:
            costs.append(cost)
            super().observe(cost)

    lengths, verifier, drafter = Watched(1, Experience()), FakeVerifier(target_model), make()
    async for _ in decode([1, 2, 3], 30, verifier, drafter, lengths, CriticalPath()):
        pass
    assert num_with or drafter is None or not drafter.calls
    assert [cost.draft_rests for cost in costs] == [False] * num_with + [True] * (26 - num_with)
