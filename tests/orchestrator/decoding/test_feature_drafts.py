"""A draft that reads hidden states gets those of exactly the committed tokens, in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from outrider.engine.scheduling import job
from outrider.protocol import hidden_states
from outrider.protocol.messages import GREEDY, SamplingParams
from tests.orchestrator.decoding.test_faults import MODES, Fault, begin, outcome
from tests.orchestrator.decoding.test_schedules import alone, fixed
from tests.support.eagle3_pair import eagle3_pair
from tests.support.fake_network import Point
from tests.support.schedules import SAMPLED, Changing, Schedule, no_lost_drafts

__all__ = ["no_lost_drafts"]  # a fixture

# The schedules' drafts check what they are sent.
WHOLE, SHORT = 96, 6


@pytest.mark.parametrize("k", [0, 1, 3, 8])
@pytest.mark.parametrize(
    ("num_predrafts", "looks_ahead"), [(0, False), (4, False), (1, True), (4, True)]
)
async def test_every_mode_relays_them(num_predrafts: int, looks_ahead: bool, k: int) -> None:
    for seed, (params, window) in enumerate(((GREEDY, WHOLE), (SAMPLED, SHORT))):
        schedule = await Schedule.start(100 * k + num_predrafts + seed, window=window)
        policy = fixed(k, looks_ahead, seed)
        text = asyncio.create_task(schedule.text(policy, num_predrafts, params))
        await schedule.drive(text)
        assert await text == alone(params)
        await schedule.finish()
        assert schedule.num_given_up == 0


@pytest.mark.parametrize("seed", range(40))
async def test_an_idle_draft_starts_from_the_window(seed: int) -> None:
    schedule = await Schedule.start(seed, 0.2, window=(WHOLE, SHORT)[seed % 2])
    policy = Changing(Random(seed), 8, looks_ahead=seed % 5 > 1)
    text = asyncio.create_task(schedule.text(policy, looks_up=seed % 4 > 1))
    await schedule.drive(text)
    assert await text == alone(GREEDY)
    await schedule.finish()
    assert schedule.num_given_up == 0


@pytest.mark.parametrize("seed", range(10))
async def test_many_small_messages_are_as_good_as_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden_states, "MAX_BYTES", 16)  # of 8 a token
    await test_an_idle_draft_starts_from_the_window(seed)


@pytest.mark.parametrize("seed", range(20))
async def test_prompts_that_begin_alike_are_read_again_at_their_ends(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "FEWEST_CAPTURED", 4)
    random = Random(seed)
    schedule = await Schedule.start(seed, num_sessions=2, window=WHOLE)
    common = [random.randrange(12) for _ in range(30)]
    prompts = [common + [random.randrange(12) for _ in range(2)] for _ in range(3)]
    texts = [
        asyncio.create_task(schedule.text(fixed(3, seed % 2 == 1), prompt=prompt))
        for prompt in prompts
    ]
    await schedule.drive(*texts)
    for text, prompt in zip(texts, prompts, strict=True):
        assert await text == alone(GREEDY, prompt)
    await schedule.finish()
    assert schedule.num_given_up == 0
    assert schedule.services.target.num_reused_tokens >= 28


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_happens_at_any_moment(seed: int) -> None:
    schedule = await Schedule.start(seed, 0.2, window=(WHOLE, SHORT)[seed % 2])
    mode = MODES[seed // 3 % len(MODES)]
    text = begin(schedule, mode)
    strike, endings = (
        (text.cancel, {"text", "cancelled"}),
        (partial(schedule.network.kill, "draft"), {"text"}),
        (partial(schedule.network.kill, "target"), {"text", "SERVICE_UNAVAILABLE"}),
    )[seed % 3]
    Fault(schedule, strike).at_event(Random(seed).randrange(120))
    assert await outcome(schedule, text, mode) in endings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eagle3")


# So hot that the shared noise decides for both models, and most of the draft is accepted.
HOT = SamplingParams(temperature=30.0, seed=3)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize(
    ("num_predrafts", "looks_ahead"), [(0, False), (4, False), (1, True), (4, True)]
)
async def test_an_eagle3_draft_proposes_what_it_would_from_scratch(
    num_predrafts: int, looks_ahead: bool, k: int, folder: Path
) -> None:
    num_hits = num_proposed = 0
    for seed, params in enumerate((GREEDY, HOT, HOT)):
        schedule = await Schedule.start(10 * k + seed, services=eagle3_pair(folder, num_predrafts))
        policy = fixed(k, looks_ahead, seed)
        text = asyncio.create_task(schedule.text(policy, num_predrafts, params, 60))
        await schedule.drive(text)
        assert await text == alone(params, num_tokens=60)
        await schedule.finish()
        assert schedule.num_given_up == 0
        num_hits += schedule.num_hits + schedule.num_pipelined_steps
        num_proposed += schedule.num_proposed
    assert num_proposed > 0
    if num_predrafts != 1:
        assert (num_hits > 0) == (num_predrafts > 0)


@pytest.mark.parametrize("seed", range(40))
async def test_an_eagle3_draft_under_decisions_that_change(seed: int, folder: Path) -> None:
    params = (GREEDY, HOT)[seed % 2]
    schedule = await Schedule.start(seed, services=eagle3_pair(folder, seed % 5))
    policy = Changing(Random(seed), 8, looks_ahead=seed % 5 > 1)
    prompt = [5, 1, 7, 5, 1, 7, 2, 5, 1]
    text = asyncio.create_task(schedule.text(policy, 4, params, prompt=prompt, looks_up=True))
    await schedule.drive(text)
    assert await text == alone(params, prompt)
    await schedule.finish()
    assert schedule.num_given_up == 0


@pytest.mark.parametrize("seed", range(30))
async def test_an_eagle3_draft_that_is_hit_at_any_moment(seed: int, folder: Path) -> None:
    """Killed, restarted, or left by its client."""
    schedule = await Schedule.start(seed, services=eagle3_pair(folder, 4))
    mode = (4, HOT)
    text = begin(schedule, mode)
    strikes: tuple[Callable[[], Any], ...] = (
        partial(schedule.network.kill, "draft"),
        schedule.restart_draft,
        text.cancel,
    )
    Fault(schedule, strikes[seed % 3]).at_event(Random(seed).randrange(100))
    ending = await outcome(schedule, text, mode)
    assert ending in ({"text", "cancelled"} if seed % 3 == 2 else {"text"})


@pytest.mark.parametrize("point", [Point.OPENED, Point.REQUEST_ARRIVED])
async def test_a_target_that_dies_before_its_first_result(point: Point) -> None:
    """The draft's prefill waits for hidden states that never come."""
    schedule = await Schedule.start(1, window=WHOLE)
    Fault(schedule, partial(schedule.network.kill, "target")).at_point("target", point, 0)
    text = asyncio.create_task(schedule.text(fixed(3), MODES[0][0], MODES[0][1]))
    assert await outcome(schedule, text, MODES[0]) == "SERVICE_UNAVAILABLE"
