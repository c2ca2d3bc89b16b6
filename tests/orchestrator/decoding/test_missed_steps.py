"""Steps that nothing was predrafted for, where the draft is not worth waiting for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from orchestrator.activity import Activity
from orchestrator.admission import Admission
from orchestrator.decoding.decoder import Step, decode
from orchestrator.decoding.interfaces import Foresight
from orchestrator.decoding.speculation import Speculation
from orchestrator.generation import Generation, Request
from orchestrator.metrics import generation_metrics
from orchestrator.policy.draft_length import FixedLength, LengthPolicy
from orchestrator.policy.experience import Experience
from orchestrator.reporting.latency import CriticalPath
from outrider.protocol.messages import VerifyResult
from tests.support.fakes import FakeDrafter, FakeVerifier

PROMPT = [1, 2, 3]
MAX_LENGTH = 40


def target_model(tokens: Sequence[int]) -> int:
    return (sum(tokens) * 7 + len(tokens)) % 50


def draft_model(tokens: Sequence[int]) -> int:
    return target_model(tokens) if len(tokens) % 4 else 0


class NeverWaiting(FixedLength):
    def missed_length(self, length: int) -> int:
        return 0


class Patient(NeverWaiting):
    def patience_ns(self) -> float:
        return 60e9


class SlowVerifier(FakeVerifier):
    """Others have a moment meanwhile."""

    async def verify(
        self,
        tokens: Sequence[int],
        draft_token_ids: Sequence[int],
        foresight: Foresight | None = None,
        num_run_ahead_tokens: int = 0,
    ) -> VerifyResult:
        await asyncio.sleep(0)
        return await super().verify(tokens, draft_token_ids, foresight, num_run_ahead_tokens)


async def run(
    drafter: FakeDrafter,
    num_predrafts: int,
    verifier: FakeVerifier,
    path: CriticalPath,
    lengths: LengthPolicy | None = None,
) -> list[Step]:
    lengths = lengths or NeverWaiting(3, Experience())
    steps = decode(PROMPT, MAX_LENGTH, verifier, drafter, lengths, path, num_predrafts)
    return [step async for step in steps]


def check_text(steps: Sequence[Step]) -> None:
    tokens = list(PROMPT)
    for step in steps:
        for token_id in step.token_ids:
            assert token_id == target_model(tokens)
            tokens.append(token_id)
    assert len(tokens) == MAX_LENGTH


async def test_it_goes_on_without_and_says_so() -> None:
    """So that the draft predrafts for the next result."""
    drafter = FakeDrafter(draft_model, num_predrafted=lambda tokens: len(tokens) % 3)
    path = CriticalPath()
    steps = await run(drafter, 2, SlowVerifier(target_model), path)
    check_text(steps)
    assert len(drafter.calls) == 1  # for the prompt
    missed = [step for step in steps if step.is_cache_miss]
    assert missed
    assert all(step.num_draft_tokens == 0 for step in missed)
    assert any(step.drafted.is_cache_hit for step in steps)
    committed = [*PROMPT, *steps[0].token_ids]
    for step, (tokens, draft) in zip(steps[1:], drafter.followed, strict=False):
        assert tokens == committed
        assert len(draft) == step.num_draft_tokens
        committed += step.token_ids
    assert not [stage for stage in path.stages if stage.startswith("draft_")]


@pytest.mark.parametrize("is_patient", [True, False])
async def test_what_is_under_way_is_waited_for_as_long_as_it_is_worth(is_patient: bool) -> None:
    drafter = FakeDrafter(draft_model, num_predrafted=lambda tokens: 2, is_late=True)
    lengths = (Patient if is_patient else NeverWaiting)(3, Experience())
    path = CriticalPath()
    steps = await run(drafter, 2, SlowVerifier(target_model), path, lengths)
    check_text(steps)
    found = [step.drafted.is_cache_hit for step in steps[3:]]
    assert all(found) if is_patient else not any(found)
    assert len(drafter.calls) == 1  # for the prompt


async def test_the_prompt_is_not_waited_for_either() -> None:
    drafter = FakeDrafter(draft_model, num_predrafted=lambda tokens: 2)
    steps = await run(drafter, 2, FakeVerifier(target_model), CriticalPath())  # never idle
    check_text(steps)
    assert not any(step.num_draft_tokens or step.is_cache_miss for step in steps)


async def test_in_turn_the_draft_is_waited_for() -> None:
    drafter = FakeDrafter(target_model)
    steps = await run(drafter, 0, SlowVerifier(target_model), CriticalPath())
    check_text(steps)
    assert [step.num_draft_tokens for step in steps[1:-1]] == [3] * (len(steps) - 2)


def test_they_are_told_to_prometheus() -> None:
    generation = Generation(Request(), CriticalPath(None))
    generation.speculation = Speculation(num_cache_misses=3)
    activity = Activity()
    with activity.running(generation):
        pass
    values = {
        sample.name: sample.value
        for metric in generation_metrics(activity, Admission(1))
        for sample in metric.samples
    }
    assert values["outrider_cache_misses_total"] == 3
