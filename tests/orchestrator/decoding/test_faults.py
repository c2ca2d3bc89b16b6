"""Services that die, and clients that go, at every point of the protocol."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest

from orchestrator.policy.draft_policy import DraftPolicy
from outrider.errors import OutriderError, ServiceUnavailable
from outrider.protocol.messages import GREEDY, SamplingParams
from tests.orchestrator.decoding.test_schedules import NUM_TOKENS, alone, fixed
from tests.support.fake_network import Point
from tests.support.schedules import SAMPLED, Changing, Schedule, no_lost_drafts

__all__ = ["no_lost_drafts"]  # a fixture

ONCE = {Point.OPENED, Point.CLOSED}
TABLES = {Point.TABLE_SENT, Point.TABLE_RECEIVED}

POINTS = [(point, count) for point in Point for count in range(1 if point in ONCE else 3)]
TARGET_POINTS = [(point, count) for point, count in POINTS if point not in TABLES]
# Outcomes that are predrafted for, and how tokens are chosen. Without any there is no table.
Mode = tuple[int, SamplingParams]
MODES: list[Mode] = [(4, GREEDY), (1, SAMPLED), (0, GREEDY), (4, SAMPLED), (0, SAMPLED)]
ALL_POINTS = [("draft", *point) for point in POINTS] + [("target", *p) for p in TARGET_POINTS]


class Fault:
    """Something that happens once: at a point of a service's streams, or before an event."""

    def __init__(self, schedule: Schedule, strike: Callable[[], Any]) -> None:
        self.has_struck = False
        self._schedule, self._strike = schedule, strike

    def at_point(self, service: str, point: Point, count: int) -> None:
        self._schedule.network.on_point = lambda *reached: self._strike_if(
            reached == (service, point, count)
        )

    def at_event(self, number: int) -> None:
        self._schedule.before_event = lambda event: self._strike_if(event == number)

    def _strike_if(self, is_time: bool) -> None:
        if is_time and not self.has_struck:
            self.has_struck = True
            self._strike()


async def outcome(schedule: Schedule, text: asyncio.Task[list[int]], mode: Mode) -> str:
    """How a text ends: "text", "cancelled", or an error's reason; nothing may be left behind."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    await schedule.drive(text)
    await schedule.finish()
    if text.cancelled():
        return "cancelled"
    try:
        assert await text == alone(mode[1])
        ending = "text"
    except OutriderError as error:
        ending = error.reason
    del text
    gc.collect(0)  # asyncio complains of errors that nobody took when they are collected
    assert complaints == []
    return ending


def begin(schedule: Schedule, mode: Mode) -> asyncio.Task[list[int]]:
    num_predrafts, params = mode
    random = Random(repr(schedule.seed))
    looks_ahead = random.random() < 0.7
    policies: list[DraftPolicy] = [fixed(3, looks_ahead), Changing(random, 8, looks_ahead)]
    policy, looks_up = random.choice(policies), random.choice([True, False])
    return asyncio.create_task(
        schedule.text(policy, num_predrafts, params, NUM_TOKENS, looks_up=looks_up)
    )


@pytest.mark.parametrize(("point", "count"), POINTS)
async def test_a_killed_draft_costs_speed_only(point: Point, count: int) -> None:
    faults = []
    for seed, mode in enumerate(MODES):
        schedule = await Schedule.start(seed, unlikeness=0.1 * (seed % 3))
        faults.append(Fault(schedule, partial(schedule.network.kill, "draft")))
        faults[-1].at_point("draft", point, count)
        assert await outcome(schedule, begin(schedule, mode), mode) == "text"
    assert any(fault.has_struck for fault in faults)


@pytest.mark.parametrize("window", [0, 96, 6])
async def test_a_restarted_draft_takes_part_again(window: int) -> None:
    """One that reads hidden states begins with those that were kept."""
    num_again = []
    for seed in range(10):
        schedule = await Schedule.start(seed, window=window)
        Fault(schedule, schedule.restart_draft).at_event(Random(seed).randrange(60))
        mode = MODES[seed % len(MODES)]
        text = asyncio.create_task(schedule.text(fixed(3), *mode))
        assert await outcome(schedule, text, mode) == "text"
        num_again.append(schedule.num_proposed_again)
    assert sum(count > 0 for count in num_again) >= 5, num_again


@pytest.mark.parametrize(("point", "count"), TARGET_POINTS)
async def test_a_killed_target_is_an_error_and_leaves_nothing(point: Point, count: int) -> None:
    faults = []
    for seed, mode in enumerate(MODES):
        schedule = await Schedule.start(seed, unlikeness=0.1 * (seed % 3))
        faults.append(Fault(schedule, partial(schedule.network.kill, "target")))
        faults[-1].at_point("target", point, count)
        ending = await outcome(schedule, begin(schedule, mode), mode)
        is_whole = point is Point.CLOSED or not faults[-1].has_struck
        assert ending == ("text" if is_whole else ServiceUnavailable.reason)
    assert any(fault.has_struck for fault in faults)


@pytest.mark.parametrize(("service", "point", "count"), ALL_POINTS)
async def test_a_client_that_goes_frees_everything(service: str, point: Point, count: int) -> None:
    faults = []
    for seed, mode in enumerate(MODES):
        schedule = await Schedule.start(seed, unlikeness=0.1 * (seed % 3))
        text = begin(schedule, mode)
        faults.append(Fault(schedule, text.cancel))
        faults[-1].at_point(service, point, count)
        ending = await outcome(schedule, text, mode)
        assert ending == ("cancelled" if faults[-1].has_struck else "text")
    assert any(fault.has_struck for fault in faults)


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_happens_at_any_moment(seed: int) -> None:
    """Kills, cancellation, and services that shut down, between any two events."""
    schedule = await Schedule.start(seed, unlikeness=0.1 * (seed % 3))
    mode = MODES[seed // 5 % len(MODES)]
    text = begin(schedule, mode)
    strikes: list[tuple[Callable[[], Any], set[str]]] = [
        (text.cancel, {"text", "cancelled"}),
        (lambda: schedule.network.kill("draft"), {"text"}),
        (lambda: schedule.network.kill("target"), {"text", ServiceUnavailable.reason}),
        (schedule.services.draft.close, {"text"}),
        (schedule.services.target.close, {"text", ServiceUnavailable.reason}),
    ]
    strike, endings = strikes[seed % len(strikes)]
    Fault(schedule, strike).at_event(Random(seed).randrange(120))
    assert await outcome(schedule, text, mode) in endings
