"""The target alone, token after token, without a message in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
import torch

from orchestrator.policy.draft_policy import Decision
from outrider.engine.chunk import Chunk
from outrider.errors import ContextTooLong
from outrider.protocol.messages import GREEDY, ModelInfo, SamplingParams, VerifyResult
from outrider.serving.model_service import ServedModel
from outrider.v1 import target_pb2
from target_service.servicer import TargetServicer
from target_service.verifier import Verifier, VerifierSession
from tests.support.fakes import FakeDrafter, FakeVerifier
from tests.support.loop import run, wants
from tests.support.toy_pair import MAX_CONTEXT_LENGTH, ToyEngine, ToyModel

PROMPT = [5, 1, 7, 7, 2]
SAMPLED = SamplingParams(temperature=1.0, seed=3)


class Engine(ToyEngine):
    """Fails at a pass, where it is told to; a gate holds passes back."""

    fails_at: int | None = None
    num_passes = 0

    def __init__(self) -> None:
        super().__init__(ToyModel(), num_slots=2)
        self.gate: threading.Semaphore | None = None

    def forward(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        if self.gate is not None:
            assert self.gate.acquire(timeout=10)
        self.num_passes += 1
        if self.num_passes == self.fails_at:
            raise RuntimeError("out of memory")
        return super().forward(chunks)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def verifier(engine: Engine) -> Iterator[Verifier]:
    any_engine: Any = engine
    verifier = Verifier(any_engine)
    yield verifier
    verifier.scheduler.close()


def alone(num_tokens: int, params: SamplingParams) -> list[int]:
    return ToyModel().continuation(PROMPT, num_tokens, params)


async def all_of(session: VerifierSession) -> list[VerifyResult]:
    return [result async for result in session.run_ahead()]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
@pytest.mark.parametrize("num_right", range(3))
async def test_it_goes_on_from_its_result(
    verifier: Verifier, params: SamplingParams, num_right: int
) -> None:
    session, text = verifier.open_session(), alone(9, params)
    wrong = (text[num_right] + 1) % 12
    draft = [*text[:num_right], wrong, wrong]
    result = await session.verify(0, PROMPT, draft, params, num_run_ahead_tokens=4)
    assert (result.num_accepted_tokens, result.is_run_ahead) == (num_right, False)
    more = await all_of(session)
    said = [*text[:num_right], result.next_token_id, *(one.next_token_id for one in more)]
    assert said == text[: num_right + 5]
    first = len(PROMPT) + num_right + 1
    assert [one.context_length for one in more] == list(range(first, first + 4))
    assert all(one.is_run_ahead and one.sequence_length == one.context_length for one in more)


async def test_a_request_interrupts_it_wherever_it_is(engine: Engine, verifier: Verifier) -> None:
    text = alone(20, GREEDY)
    for num_heard in range(4):
        session = verifier.open_session()
        engine.gate = threading.Semaphore(0)
        for _ in range(1 + num_heard):
            engine.gate.release()
        result = await session.verify(0, PROMPT, [], GREEDY, num_run_ahead_tokens=10)
        more, heard = session.run_ahead(), [result.next_token_id]
        for _ in range(num_heard):
            heard.append((await anext(more)).next_token_id)
        engine.gate.release(20)  # the pass that is under way, and all after it
        session.stop()
        assert [one async for one in more] == []
        held = len(PROMPT) + num_heard
        draft = text[num_heard + 1 : num_heard + 4]
        result = await session.verify(held, heard[-1:], draft, GREEDY)
        assert [*heard, *draft, result.next_token_id] == text[: num_heard + 5]
        session.close()


async def test_a_pass_that_fails_is_heard_of(engine: Engine, verifier: Verifier) -> None:
    engine.fails_at = 3
    session = verifier.open_session()
    await session.verify(0, PROMPT, [], GREEDY, num_run_ahead_tokens=5)
    with pytest.raises(RuntimeError, match="out of memory"):
        await all_of(session)


async def test_what_is_being_written_is_not_cancelled_with_its_call(verifier: Verifier) -> None:
    """gRPC frees a write once it has ended, not if who awaits it is cancelled."""
    writing, go_on, written = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Context:
        async def write(self, response: target_pb2.VerifyResponse) -> None:
            if response.HasField("run_ahead"):
                writing.set()
                await go_on.wait()
                written.set()

    async def requests() -> AsyncIterator[target_pb2.VerifyRequest]:
        yield target_pb2.VerifyRequest(token_ids=PROMPT, num_run_ahead_tokens=4)
        await asyncio.Event().wait()

    servicer, context, num_slots = TargetServicer(), Context(), verifier.num_free_slots
    servicer.serve_model(ServedModel(ModelInfo("a-target", 99, 12)), verifier)
    call = asyncio.create_task(servicer.Verify(requests(), context))  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        await writing.wait()
        call.cancel()
        await asyncio.wait([call])
        go_on.set()
        await written.wait()
        for _ in range(num_slots):  # all are free, once the pass has ended
            await verifier.open_session_in_order()


async def test_what_does_not_fit_is_refused_before_it_begins(verifier: Verifier) -> None:
    session = verifier.open_session()
    room = MAX_CONTEXT_LENGTH - len(PROMPT)
    with pytest.raises(ContextTooLong):
        await session.verify(0, PROMPT, [], GREEDY, num_run_ahead_tokens=room + 1)
    await session.verify(0, PROMPT, [], GREEDY, num_run_ahead_tokens=room)
    assert len(await all_of(session)) == room


@pytest.mark.parametrize(
    ("decision", "has_draft", "num_requests"),
    [
        (wants(0, runs_ahead=True), True, 2),
        (wants(0, runs_ahead=True), False, 2),
        (wants(0), True, 40),
        (wants(2, runs_ahead=True, miss_length=0), True, 2),  # beside a draft that reads
    ],
)
async def test_a_target_that_may_run_ahead_needs_a_request_now_and_then(
    decision: Decision, has_draft: bool, num_requests: int
) -> None:
    verifier = FakeVerifier(lambda tokens: len(tokens) % 7)
    drafter = FakeDrafter(lambda tokens: 9) if has_draft else None
    steps = await run(drafter, decision, len(PROMPT) + 40, prompt=PROMPT, target=verifier)
    assert len(steps) == 40
    assert verifier.num_requests == num_requests
    assert sum(step.is_run_ahead for step in steps) == 40 - num_requests


@pytest.mark.parametrize(
    ("num_repeated", "shortest", "is_interrupted"), [(5, 8, False), (12, 8, True), (12, 99, False)]
)
async def test_a_target_that_runs_ahead_is_interrupted_for_what_is_long_enough(
    num_repeated: int, shortest: int, is_interrupted: bool
) -> None:
    """The text comes back to its beginning, for so many tokens."""
    beginning = list(range(100, 100 + num_repeated))
    story = [1, 2, *beginning, 7, 8]
    prompt = [*beginning, 3, 1, 2, *beginning, 9, 9]

    def next_token(tokens: Sequence[int]) -> int:
        return [*story, *range(20, 60)][len(tokens) - len(prompt)]

    decision = wants(0, runs_ahead=True, lookup_length=16, shortest_lookup=shortest)
    verifier = FakeVerifier(next_token)
    steps = await run(
        None, decision, len(prompt) + 30, looks_up=True, target=verifier, prompt=prompt
    )
    said = [token_id for step in steps for token_id in step.token_ids]
    assert said == [next_token([*prompt, *said[:i]]) for i in range(30)]
    assert any(draft for _, draft in verifier.calls) == is_interrupted
