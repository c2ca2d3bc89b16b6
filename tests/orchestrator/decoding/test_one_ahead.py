"""Steps that begin while the caller is busy with the ones before."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from orchestrator.decoding.decoder import decode, one_ahead
from orchestrator.decoding.proposer import Proposer
from orchestrator.step import StepRecord
from outrider.errors import ServiceUnavailable
from tests.support.fakes import FakeVerifier
from tests.support.loop import PROMPT, ScriptedPolicy, plain_decoding, target_model, wants


class Steps:
    """Three steps; what has happened to them, and an error behind the last one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.events: list[str] = []
        self._error = error

    async def run(self) -> AsyncGenerator[StepRecord, None]:
        try:
            for number in range(3):
                self.events.append(f"{number} begins")
                await asyncio.sleep(0)
                yield StepRecord((number,))
            if self._error is not None:
                raise self._error
        finally:
            self.events.append("closed")


async def test_a_step_begins_before_the_one_before_is_handled_and_no_second_one() -> None:
    steps = Steps()
    async for step in one_ahead(steps.run()):
        for _ in range(5):
            await asyncio.sleep(0)
        steps.events.append(f"{step.token_ids[0]} handled")
    assert steps.events == [
        *("0 begins", "1 begins", "0 handled", "2 begins", "1 handled", "closed", "2 handled")
    ]


async def test_an_error_comes_after_the_steps_before_it() -> None:
    seen = []
    with pytest.raises(ServiceUnavailable):
        async for step in one_ahead(Steps(ServiceUnavailable("gone")).run()):
            seen.append(step.token_ids)
    assert seen == [(0,), (1,), (2,)]


async def test_who_stops_early_leaves_nothing_behind() -> None:
    steps = Steps()
    async with aclosing(one_ahead(steps.run())) as ahead:
        async for _ in ahead:
            break
    assert steps.events == ["0 begins", "1 begins", "closed"]
    assert len(asyncio.all_tasks()) == 1


async def test_no_step_begins_behind_the_end_of_the_text() -> None:
    end = plain_decoding(PROMPT, 20)[4]
    verifier, policy = FakeVerifier(target_model), ScriptedPolicy(wants(0))
    steps = decode(PROMPT, 20, verifier, Proposer(None, policy), {end})
    tokens = [token_id async for step in one_ahead(steps) for token_id in step.token_ids]
    assert tokens == plain_decoding(PROMPT, 20)[: len(tokens)]
    assert tokens[-1] == end
    assert end not in tokens[:-1]
