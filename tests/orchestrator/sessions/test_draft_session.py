"""A draft session against a stream that plays a script."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import grpc
import pytest
from grpc.aio import Metadata

from orchestrator.reporting.timeline import Timeline
from orchestrator.sessions.draft_session import DraftSession
from orchestrator.sessions.hidden_state_window import HiddenStateWindow
from outrider.errors import OutriderError, ServiceUnavailable
from outrider.protocol import hidden_states
from outrider.protocol.codec import predraft_plan_from_wire
from outrider.protocol.hidden_states import HiddenStates, HiddenStateSpec
from outrider.protocol.messages import GREEDY, ModelInfo, PredraftPlan
from outrider.protocol.stages import Track
from outrider.v1 import draft_pb2

PREDRAFT_PLAN = PredraftPlan(num_predrafts=2, num_tokens=3, is_limit=True, acceptance_rate=0.5)
MODEL = ModelInfo("draft", max_context_length=100, vocab_size=50)


class ScriptedCall:
    """A stream whose responses the test sends."""

    def __init__(self) -> None:
        self.requests: list[draft_pb2.ProposeRequest] = []
        self._responses: asyncio.Queue[draft_pb2.ProposeResponse | None] = asyncio.Queue()
        self.is_cancelled = False
        self.breaks_in_a_write = False

    async def write(self, request: draft_pb2.ProposeRequest) -> None:
        if self.breaks_in_a_write:
            await self.respond_with(None)
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata())
        self.requests.append(request)

    async def read(self) -> draft_pb2.ProposeResponse | None:
        return await self._responses.get()

    async def respond(self, **fields: Any) -> None:
        """Sends a proposal, and lets the session see it."""
        await self.respond_with(draft_pb2.ProposeResponse(proposal=draft_pb2.Proposal(**fields)))

    async def respond_with(self, response: draft_pb2.ProposeResponse | None) -> None:
        self._responses.put_nowait(response)
        for _ in range(5):
            await asyncio.sleep(0)

    async def predraft(self, context_length: int, assumed: list[int], draft: list[int]) -> None:
        predraft = draft_pb2.Predraft(assumed_token_ids=assumed, draft_token_ids=draft)
        update = draft_pb2.PredraftUpdate(context_length=context_length, predrafts=[predraft])
        await self.respond_with(draft_pb2.ProposeResponse(predrafts=update))

    def cancel(self) -> None:
        self.is_cancelled = True


@pytest.fixture
def call() -> ScriptedCall:
    return ScriptedCall()


@pytest.fixture
async def session(call: ScriptedCall) -> DraftSession:
    return await begin(call)


async def begin(call: ScriptedCall) -> DraftSession:
    """A session that has read the prompt 1, 2, 3."""
    session = DraftSession(lambda: call, GREEDY, MODEL, MODEL)
    reading = asyncio.create_task(session.propose([1, 2, 3], 0, PREDRAFT_PLAN))
    await call.respond(context_length=3, sequence_length=3)
    await reading
    return session


async def test_what_is_predrafted_is_found_by_what_is_committed(
    session: DraftSession, call: ScriptedCall
) -> None:
    assert session.cached([1, 2, 3, 4]) is None
    await call.predraft(3, [4], [5])
    await call.predraft(3, [4], [5, 6])
    await call.predraft(3, [7], [8])
    predrafted = session.cached([1, 2, 3, 4])
    assert predrafted is not None
    assert predrafted.draft_token_ids == (5, 6)
    assert session.cached([1, 2, 3, 9]) is None
    assert session.num_predrafted_tokens == 3


async def test_what_is_under_way_is_coming_until_it_is_there(
    session: DraftSession, call: ScriptedCall
) -> None:
    assert not session.is_under_way([1, 2, 3, 4])
    await call.predraft(3, [4], [])
    assert session.is_under_way([1, 2, 3, 4])
    assert session.cached([1, 2, 3, 4]) is None
    assert session.after_full_acceptance([1, 2, 3], ()) is None  # not worth sending ahead
    growth = session.growth()
    await call.predraft(3, [4], [5])
    assert growth.done()
    assert not session.is_under_way([1, 2, 3, 4])
    assert session.cached([1, 2, 3, 4]) is not None


async def test_following_is_one_message_that_nobody_waits_for(
    session: DraftSession, call: ScriptedCall
) -> None:
    await call.predraft(3, [4], [5, 6])
    await session.follow([1, 2, 3, 4], (5, 6), PREDRAFT_PLAN)
    request = call.requests[-1]
    assert (request.context_length, list(request.token_ids)) == (3, [4])
    assert list(request.draft_token_ids) == [5, 6]
    assert predraft_plan_from_wire(request) == PREDRAFT_PLAN
    # Its confirmation comes before the answer to what is asked next.
    asking = asyncio.create_task(session.propose([1, 2, 3, 4, 5, 9], 1, PREDRAFT_PLAN))
    await call.respond(context_length=4, sequence_length=6)
    await call.respond(context_length=6, draft_token_ids=[10], sequence_length=6)
    assert (await asking).draft_token_ids == (10,)
    # The draft tokens that it followed were kept as far as they came true.
    assert (call.requests[-1].context_length, list(call.requests[-1].token_ids)) == (5, [9])


@pytest.mark.parametrize("predraft_plan", [PREDRAFT_PLAN, PredraftPlan()])
async def test_what_is_verified_is_sent_once(
    session: DraftSession, call: ScriptedCall, predraft_plan: PredraftPlan
) -> None:
    await session.follow([1, 2, 3, 4], (5,), predraft_plan)
    assert call.requests[-1].num_speculative_tokens == 0
    asking = asyncio.create_task(session.propose([1, 2, 3, 4, 5, 9], 1, predraft_plan))
    await call.respond(context_length=4, sequence_length=5)
    await call.respond(context_length=6, draft_token_ids=[10], sequence_length=6)
    assert (await asking).draft_token_ids == (10,)
    assert (call.requests[-1].context_length, list(call.requests[-1].token_ids)) == (5, [9])


async def test_what_comes_late_is_dropped(session: DraftSession, call: ScriptedCall) -> None:
    await call.predraft(3, [4], [5])
    await session.follow([1, 2, 3, 4], (5,), PREDRAFT_PLAN)
    await call.predraft(3, [4], [5, 6])
    await call.predraft(3, [7], [8])
    assert session.cached([1, 2, 3, 4]) is None
    assert session.cached([1, 2, 3, 4, 7]) is None
    assert session.num_predrafted_tokens == 1


async def test_a_prompts_hidden_states_come_with_its_tokens(
    call: ScriptedCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several messages, the first of which opens the session."""
    monkeypatch.setattr(hidden_states, "MAX_BYTES", 8)
    window = HiddenStateWindow(HiddenStateSpec((0, 1), hidden_size=1, window=5))
    timeline = Timeline()
    timeline.sent(Track.DRAFT, "of a session that was lost", [])
    session = DraftSession(lambda: call, GREEDY, MODEL, MODEL, timeline, window)
    prompt = [10, 11, 12, 13, 14, 15, 16]
    await session.until_readable(prompt[:1])
    reading = asyncio.create_task(session.until_readable(prompt))
    await asyncio.sleep(0)
    assert not reading.done()
    window.add(HiddenStates(0, 7, bytes(range(28))))
    await reading
    asking = asyncio.create_task(session.propose(prompt, 3, PREDRAFT_PLAN))
    await call.respond(context_length=5, sequence_length=5)
    await call.respond(context_length=7, draft_token_ids=[1], sequence_length=7)
    assert (await asking).draft_token_ids == (1,)
    first, last = call.requests
    assert (first.context_length, first.token_ids) == (0, prompt[:5])
    assert first.hidden_states.first_index == 2
    assert first.hidden_states.data == bytes(range(8, 16))
    assert (first.num_speculative_tokens, first.num_predrafts) == (0, 0)
    assert (last.context_length, last.token_ids) == (5, prompt[5:])
    assert last.hidden_states.data == bytes(range(16, 24))
    assert last.num_speculative_tokens == 3
    names = {interval.name for interval in timeline.intervals if interval.track == Track.NETWORK}
    assert names == {"read", "propose"}


async def test_an_answer_nobody_asked_for_ends_the_session(
    session: DraftSession, call: ScriptedCall
) -> None:
    await call.respond(context_length=3)
    with pytest.raises(ServiceUnavailable, match="not asked"):
        await session.propose([1, 2, 3, 4], 2, PREDRAFT_PLAN)
    with pytest.raises(ServiceUnavailable, match="not asked"):
        await session.follow([1, 2, 3, 4], (5,), PREDRAFT_PLAN)


async def test_what_cannot_be_decoded_ends_the_session_and_whoever_waits(
    session: DraftSession, call: ScriptedCall
) -> None:
    asking = asyncio.create_task(session.propose([1, 2, 3, 4], 2, PREDRAFT_PLAN))
    await asyncio.sleep(0)
    await call.respond_with(None)  # as gRPC has it
    with pytest.raises(OutriderError, match="decoded"):
        await asyncio.wait_for(asking, 5)


async def test_an_error_is_reported_once(call: ScriptedCall) -> None:
    """Who could not send does not wait for an answer, and asyncio must not complain of that."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    session = await begin(call)
    call.breaks_in_a_write = True
    with pytest.raises(ServiceUnavailable):
        await session.propose([1, 2, 3, 4], 2, PREDRAFT_PLAN)
    del session
    gc.collect()
    assert complaints == []


async def test_closing_cancels_the_stream(session: DraftSession, call: ScriptedCall) -> None:
    session.close()
    assert call.is_cancelled
