"""The target alone, token after token, without a message in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
import torch

from orchestrator.decoding.decoder import decode
from orchestrator.policy.draft_length import FixedLength
from orchestrator.policy.experience import Experience
from orchestrator.reporting.latency import CriticalPath
from outrider.engine.chunk import Chunk
from outrider.errors import ContextTooLong
from outrider.protocol.messages import GREEDY, ModelInfo, SamplingParams, VerifyResult
from outrider.serving.model_service import ServedModel
from outrider.v1 import target_pb2
from target_service.servicer import TargetServicer
from target_service.verifier import Verifier, VerifierSession
from tests.support.fakes import FakeDrafter, FakeVerifier, Far
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
    return [result async for result in session.more()]


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
        more, heard = session.more(), [result.next_token_id]
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
    ("k", "has_draft", "is_far", "sessions", "num_requests"),
    [
        (0, True, True, 1, 2),
        (0, True, False, 8, 2),
        (0, True, False, 1, 40),
        (2, True, True, 8, 40),
        (2, False, True, 1, 2),  # where there is none to be asked, it is no other thing
        (2, False, False, 1, 40),
    ],
)
async def test_where_messages_would_hold_it_up_and_the_draft_rests_it_is_let(
    k: int, has_draft: bool, is_far: bool, sessions: int, num_requests: int
) -> None:
    verifier = FakeVerifier(lambda tokens: len(tokens) % 7)
    drafter = FakeDrafter(lambda tokens: 9) if has_draft else None
    lengths = FixedLength(k, Experience(sessions=sessions))
    distance = Far() if is_far else None
    steps = decode(
        PROMPT, len(PROMPT) + 40, verifier, drafter, lengths, CriticalPath(), distance=distance
    )
    assert len([step async for step in steps]) == 40
    assert verifier.num_requests == num_requests


class Looking(FixedLength):
    def lookup_length(self, match_length: int, is_confirmed: bool) -> int:
        return match_length


@pytest.mark.parametrize(
    ("num_repeated", "sessions", "is_interrupted"), [(5, 1, False), (12, 1, True), (12, 8, False)]
)
async def test_only_what_is_long_is_looked_up_meanwhile_and_nothing_where_others_share(
    num_repeated: int, sessions: int, is_interrupted: bool
) -> None:
    """The text comes back to its beginning, for so many tokens."""
    beginning = list(range(100, 100 + num_repeated))
    said = [1, 2, *beginning, 7, 8]
    prompt = [*beginning, 3, 1, 2, *beginning, 9, 9]

    def next_token(tokens: Sequence[int]) -> int:
        return [*said, *range(20, 60)][len(tokens) - len(prompt)]

    verifier = FakeVerifier(next_token)
    lengths = Looking(0, Experience(sessions=sessions))
    max_length, path = len(prompt) + 30, CriticalPath()
    steps = decode(prompt, max_length, verifier, None, lengths, path, looks_up=True, distance=Far())
    text = [token_id async for step in steps for token_id in step.token_ids]
    assert text == [next_token([*prompt, *text[:i]]) for i in range(30)]
    assert any(draft for _, draft in verifier.calls) == is_interrupted
