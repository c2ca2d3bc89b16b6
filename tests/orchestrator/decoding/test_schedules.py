"""The text is the target's own, whatever comes early, late, or never before the result."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest

from orchestrator.decoding import draft as draft_module
from orchestrator.policy.draft_policy import DraftPolicy
from outrider.protocol.messages import GREEDY, SamplingParams
from tests.support.loop import ScriptedPolicy, far, wants
from tests.support.schedules import PROMPT, SAMPLED, Changing, Schedule, no_lost_drafts
from tests.support.toy_pair import ToyModel

__all__ = ["no_lost_drafts"]  # a fixture

NUM_TOKENS = 24


def alone(
    params: SamplingParams, prompt: list[int] = PROMPT, num_tokens: int = NUM_TOKENS
) -> list[int]:
    """What the target says without a draft."""
    return ToyModel().continuation(prompt, num_tokens, params)


def fixed(k: int, looks_ahead: bool = False, busy_seconds: float = 0.0) -> DraftPolicy:
    """Always k draft tokens; with a target that is far away and busy for so long at a time."""
    decision = replace(far(k), pipeline_wait_ns=1e9 * busy_seconds) if looks_ahead else wants(k)
    return ScriptedPolicy(decision)


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize(
    ("num_predrafts", "looks_ahead"), [*((n, False) for n in range(5)), (1, True), (4, True)]
)
async def test_every_mode_is_exact_under_any_schedule(
    num_predrafts: int, looks_ahead: bool, k: int
) -> None:
    for seed, params in enumerate((GREEDY, SAMPLED)):
        for unlikeness in (0.0, 0.3):
            schedule = await Schedule.start(100 * k + 10 * num_predrafts + seed, unlikeness)
            text = asyncio.create_task(
                schedule.text(fixed(k, looks_ahead, seed), num_predrafts, params)
            )
            await schedule.drive(text)
            assert await text == alone(params)
            await schedule.finish()


@pytest.mark.parametrize("seed", range(60))
async def test_decisions_that_change_from_step_to_step(seed: int) -> None:
    params = (GREEDY, SAMPLED)[seed % 2]
    schedule = await Schedule.start(seed, unlikeness=0.2, min_confidence=0.3 * (seed % 3))
    policy, looks_up = Changing(Random(seed), 8, looks_ahead=seed % 5 > 1), seed % 4 > 1
    # Of few tokens, so that looking up finds something.
    prompt = [5, 1, 7, 5, 1, 7, 2, 5, 1]
    text = asyncio.create_task(
        schedule.text(policy, params=params, prompt=prompt, looks_up=looks_up)
    )
    await schedule.drive(text)
    assert await text == alone(params, prompt)
    await schedule.finish()


@pytest.mark.parametrize("seed", range(30))
async def test_sessions_that_share_both_services(seed: int) -> None:
    """More of them than slots, and some are cancelled."""
    random = Random(seed)
    schedule = await Schedule.start(seed, num_sessions=2)
    # They begin alike, so that what one slot has read is copied to others.
    common = [random.randrange(12) for _ in range(random.choice([0, 20, 30]))]
    prompts = [
        common + [random.randrange(12) for _ in range(random.randint(1, 10))] for _ in range(4)
    ]
    texts = [
        asyncio.create_task(
            schedule.text(fixed(random.randint(1, 6), random.random() < 0.5), prompt=prompt)
        )
        for prompt in prompts
    ]
    last_event = random.randrange(200)
    schedule.before_event = lambda event: event == last_event and texts[0].cancel()
    await schedule.drive(*texts)
    for text, prompt in zip(texts, prompts, strict=True):
        if not text.cancelled():
            assert await text == alone(GREEDY, prompt)
    await schedule.finish()


async def test_schedules_find_tables_in_time_and_too_late() -> None:
    """Otherwise the tests above would not try what they are for."""
    hits = []
    for seed in range(20):
        schedule = await Schedule.start(seed, unlikeness=0.0)
        text = asyncio.create_task(schedule.text(fixed(2)))
        await schedule.drive(text)
        hits.append(schedule.num_hits)
        await schedule.finish()
    assert min(hits) == 0
    assert max(hits) >= 5


@pytest.mark.parametrize("seed", range(30))
async def test_a_draft_may_be_taken_for_lost_at_any_wait(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft_module, "LONGEST_WAIT_SECONDS", 10.0)  # of a clock that leaps
    monkeypatch.setattr(draft_module, "LONGEST_PREFILL_SECONDS", 10.0)
    schedule = await Schedule.start(seed, unlikeness=0.2)
    text = asyncio.create_task(schedule.text(fixed(3), (0, 1, 4)[seed % 3], SAMPLED))
    await schedule.drive(text)
    assert await text == alone(SAMPLED)
    await schedule.finish()


async def test_schedules_send_ahead_what_comes_true_and_what_does_not() -> None:
    num_pipelined, num_stale = [], []
    for seed in range(20):
        schedule = await Schedule.start(seed, unlikeness=0.2 * (seed % 2))
        text = asyncio.create_task(schedule.text(fixed(1, looks_ahead=True)))
        await schedule.drive(text)
        num_pipelined.append(schedule.num_pipelined_steps)
        num_stale.append(schedule.num_stale_steps)
        await schedule.finish()
    assert sum(num_pipelined) >= 20
    assert sum(num_stale) >= 20
    assert any(map(all, zip(num_pipelined, num_stale, strict=True)))  # in one text


async def test_schedules_let_the_target_go_on_alone_and_interrupt_it() -> None:
    num_run_ahead, num_interrupted = [], []
    for seed in range(20):
        schedule = await Schedule.start(seed)
        text = asyncio.create_task(schedule.text(Changing(Random(seed), 3, looks_ahead=True)))
        await schedule.drive(text)
        num_run_ahead.append(schedule.num_run_ahead_steps)
        num_interrupted.append(schedule.num_interrupted)
        await schedule.finish()
    assert sum(num_run_ahead) >= 20
    assert sum(num_interrupted) >= 20
    schedule = await Schedule.start(0)
    text = asyncio.create_task(schedule.text(fixed(0, looks_ahead=True)))
    await schedule.drive(text)
    assert schedule.num_run_ahead_steps == NUM_TOKENS - 1  # all but the first, with one request
    await schedule.finish()
