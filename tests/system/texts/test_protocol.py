"""Propose and Verify as any gRPC client may use them, and what they refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest

from outrider.protocol.channel import from_rpc_error
from outrider.v1 import draft_pb2, target_pb2
from tests.support.system import System, running_system


@pytest.fixture
async def system(tiny_models: Callable[..., Path]) -> AsyncIterator[System]:
    async with running_system(tiny_models("llama"), tiny_models("gpt2", seed=7)) as system:
        yield system


async def refusal(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    """The status code and the reason with which a stream ends after `request`."""
    await call.write(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await call.read() is not grpc.aio.EOF:
            pass
        await call  # raises the status of a stream that ended
    error = caught.value
    return error.code(), from_rpc_error(error).reason


async def test_all_messages_at_once_and_half_close(system: System) -> None:
    """As ghz does it: nothing is read before everything is sent."""
    call = system.target.Verify()
    await call.write(target_pb2.VerifyRequest(token_ids=[5, 6, 7], draft_token_ids=[1, 2]))
    for _ in range(3):
        await call.write(target_pb2.VerifyRequest(context_length=3, token_ids=[8]))
    await call.done_writing()
    responses = [response.result async for response in call]
    assert len(responses) == 4
    assert [r.context_length for r in responses] == [3, 4, 4, 4]
    assert len({r.next_token_id for r in responses[1:]}) == 1
    assert all(r.timings.total_ns >= r.timings.forward_ns > 0 for r in responses)


async def test_rolling_back_leaves_no_trace(system: System) -> None:
    """After a wrong turn of any length, the next token is that of a fresh session."""
    fresh = system.target.Verify()
    await fresh.write(target_pb2.VerifyRequest(token_ids=[5, 6, 7, 8, 9]))
    expected = (await fresh.read()).result.next_token_id
    call = system.target.Verify()
    await call.write(target_pb2.VerifyRequest(token_ids=[5, 6, 7], draft_token_ids=[1, 2, 3, 4]))
    await call.read()
    await call.write(target_pb2.VerifyRequest(context_length=2, token_ids=[1, 1, 1, 1, 1, 1]))
    await call.read()
    await call.write(target_pb2.VerifyRequest(context_length=2, token_ids=[7, 8, 9]))
    assert (await call.read()).result.next_token_id == expected


async def test_what_was_sent_ahead_is_answered_if_what_it_assumed_is_so(system: System) -> None:
    """Draft tokens that will be accepted, and three guesses at what comes after them."""
    fresh = system.target.Verify()
    chosen: list[int] = []
    for _ in range(5):
        await fresh.write(target_pb2.VerifyRequest(token_ids=[5, 6, 7, *chosen]))
        chosen.append((await fresh.read()).result.next_token_id)
    wrong = (chosen[2] + 1) % 200
    call = system.target.Verify()
    requests = [
        {"token_ids": [5, 6, 7], "draft_token_ids": chosen[:2]},
        # Another token, another length, and what comes true:
        {"context_length": 5, "token_ids": [wrong], "draft_token_ids": [1] * 20},
        {"context_length": 4, "token_ids": chosen[2:3], "sampling": {"temperature": 9.0}},
        {"context_length": 5, "token_ids": chosen[2:3], "draft_token_ids": [chosen[3], wrong]},
    ]
    for index, fields in enumerate(requests):
        await call.write(target_pb2.VerifyRequest(**fields, assumes_result=index > 0))
    first, *stale, last = [await call.read() for _ in requests]
    first, last = first.result, last.result
    assert (first.num_accepted_tokens, first.next_token_id) == (2, chosen[2])
    assert stale == [target_pb2.VerifyResponse(stale=target_pb2.StaleRequest())] * 2
    assert (last.context_length, last.num_accepted_tokens, last.sequence_length) == (6, 1, 7)
    assert last.next_token_id == chosen[4]


async def test_a_stale_request_takes_no_pass_and_changes_nothing(system: System) -> None:
    call = system.target.Verify()
    await call.write(target_pb2.VerifyRequest(token_ids=[5, 6, 7], draft_token_ids=[1, 2]))
    result = (await call.read()).result
    choose = Mock(wraps=system.verifier.engine.choose)
    system.verifier.engine.choose = choose  # type: ignore[method-assign]
    # Token ids that do not exist would be an error if anybody looked at them.
    ahead = {"context_length": 90, "token_ids": [10**6], "draft_token_ids": [10**6]}
    await call.write(target_pb2.VerifyRequest(**ahead, assumes_result=True))
    assert (await call.read()).HasField("stale")
    choose.assert_not_called()
    await call.write(
        target_pb2.VerifyRequest(
            context_length=result.sequence_length,
            token_ids=[result.next_token_id],
            assumes_result=True,
        )
    )
    assert (await call.read()).result.context_length == result.sequence_length + 1
    choose.assert_called_once()


@pytest.mark.parametrize("token_ids", [[], [1, 2]])
async def test_what_is_sent_ahead_assumes_one_next_token(
    system: System, token_ids: list[int]
) -> None:
    call = system.target.Verify()
    await call.write(target_pb2.VerifyRequest(token_ids=[5, 6, 7]))
    await call.read()
    ahead = target_pb2.VerifyRequest(context_length=3, token_ids=token_ids, assumes_result=True)
    expected = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert await refusal(call, ahead) == expected


async def test_nothing_can_be_sent_ahead_of_the_first_result(system: System) -> None:
    ahead = target_pb2.VerifyRequest(token_ids=[5], assumes_result=True)
    expected = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert await refusal(system.target.Verify(), ahead) == expected


async def test_a_draft_proposes_what_it_would_say_itself(system: System) -> None:
    call = system.draft.Propose()
    await call.write(draft_pb2.ProposeRequest(token_ids=[5, 6, 7], num_speculative_tokens=4))
    together = (await call.read()).proposal
    one_by_one = []
    tokens = [5, 6, 7]
    for _ in together.draft_token_ids:
        await call.write(draft_pb2.ProposeRequest(token_ids=tokens, num_speculative_tokens=1))
        one_by_one += (await call.read()).proposal.draft_token_ids
        tokens = [5, 6, 7, *one_by_one]
    assert list(together.draft_token_ids) == one_by_one
    assert together.sequence_length == 3 + len(one_by_one) - 1


async def table_of(
    call: Any, context_length: int, num_outcomes: int, num_tokens: int
) -> dict[tuple[int, ...], Any]:
    """What is pushed until so many outcomes have all their tokens."""
    table: dict[tuple[int, ...], Any] = {}
    async with asyncio.timeout(30):
        while num_outcomes > sum(len(p.draft_token_ids) == num_tokens for p in table.values()):
            update = (await call.read()).predrafts
            for predraft in update.predrafts:
                table[tuple(predraft.assumed_token_ids)] = predraft
            assert update.context_length == context_length
    return table


async def test_outcomes_are_pushed_and_can_be_followed(system: System) -> None:
    call, fresh = system.draft.Propose(), system.draft.Propose()
    plan = {"num_predrafts": 3, "predraft_length": 2}
    request = draft_pb2.ProposeRequest(token_ids=[5, 6, 7], num_speculative_tokens=2, **plan)
    await call.write(request)
    draft = list((await call.read()).proposal.draft_token_ids)
    table = await table_of(call, 3, 3, 2)
    assert [list(assumed[:2]) == draft for assumed in table].count(True) == 1
    for assumed, predrafted in table.items():
        await fresh.write(
            draft_pb2.ProposeRequest(token_ids=[5, 6, 7, *assumed], num_speculative_tokens=2)
        )
        assert (await fresh.read()).proposal.draft_token_ids == predrafted.draft_token_ids
    # One came true, and its draft is being verified.
    assumed, predrafted = next(iter(table.items()))
    await call.write(
        draft_pb2.ProposeRequest(
            context_length=3,
            token_ids=assumed,
            draft_token_ids=predrafted.draft_token_ids,
            **plan,
        )
    )
    while (response := await call.read()).HasField("predrafts"):  # was on its way
        assert response.predrafts.context_length == 3
    answer = response.proposal
    assert (answer.context_length, list(answer.draft_token_ids)) == (3 + len(assumed), [])
    assert answer.sequence_length == 3 + len(assumed) + 2
    assert await table_of(call, answer.context_length, 1, 1)


async def test_a_draft_stops_at_its_end_of_text(tiny_models: Callable[..., Path]) -> None:
    request = draft_pb2.ProposeRequest(token_ids=[5, 6, 7], num_speculative_tokens=8)
    async with running_system(tiny_models("llama"), tiny_models("llama")) as system:
        call = system.draft.Propose()
        await call.write(request)
        whole = list((await call.read()).proposal.draft_token_ids)
    last = next(i for i in range(2, 8) if whole[i] not in whole[:i])
    draft = tiny_models("llama", eos_token_id=whole[last])
    async with running_system(tiny_models("llama"), draft) as system:
        call = system.draft.Propose()
        await call.write(request)
        assert list((await call.read()).proposal.draft_token_ids) == whole[: last + 1]


async def test_a_draft_keeps_to_the_targets_vocabulary(system: System) -> None:
    call = system.draft.Propose()
    await call.write(
        draft_pb2.ProposeRequest(token_ids=[5], num_speculative_tokens=8, vocab_size=20)
    )
    assert all(token_id < 20 for token_id in (await call.read()).proposal.draft_token_ids)


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"context_length": 1}, grpc.StatusCode.FAILED_PRECONDITION, "CONTEXT_MISMATCH"),
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"token_ids": [100_000]}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_TOKEN"),
        ({"token_ids": [1] * 600}, grpc.StatusCode.OUT_OF_RANGE, "CONTEXT_TOO_LONG"),
        (
            {"token_ids": [1], "sampling": {"temperature": -1.0}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        ),
        (
            {"token_ids": [1], "sampling": {"temperature": 1.0, "top_p": 0.0}},
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        ),
    ],
)
async def test_bad_requests_are_refused_by_both(
    system: System, fields: dict[str, Any], code: grpc.StatusCode, reason: str
) -> None:
    verify = target_pb2.VerifyRequest(**fields)
    propose = draft_pb2.ProposeRequest(**fields, num_speculative_tokens=2)
    assert await refusal(system.target.Verify(), verify) == (code, reason)
    assert await refusal(system.draft.Propose(), propose) == (code, reason)


async def test_numbers_out_of_range_are_refused(system: System) -> None:
    for rate in (-0.1, float("nan")):
        propose = draft_pb2.ProposeRequest(token_ids=[1], acceptance_rate=rate)
        expected = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert await refusal(system.draft.Propose(), propose) == expected
    for reason, draft in {"INVALID_REQUEST": [2] * 65, "INVALID_TOKEN": [2, 100_000]}.items():
        request = target_pb2.VerifyRequest(token_ids=[1], draft_token_ids=draft)
        expected = (grpc.StatusCode.INVALID_ARGUMENT, reason)
        assert await refusal(system.target.Verify(), request) == expected


async def test_sessions_more_than_slots_wait_their_turn_and_no_more_than_may(
    system: System,
) -> None:
    system.verifier.max_waiting = 2
    open_calls = [system.target.Verify() for _ in range(4)]
    request = target_pb2.VerifyRequest(token_ids=[1])
    for call in open_calls:
        await call.write(request)
        await call.read()
    given_up, patient = system.target.Verify(), system.target.Verify()
    for num_waiting, call in enumerate((given_up, patient), 1):
        await call.write(request)
        async with asyncio.timeout(10):
            while system.verifier.scheduler.num_waiting < num_waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    expected = (grpc.StatusCode.RESOURCE_EXHAUSTED, "NO_FREE_SLOT")
    assert await refusal(system.target.Verify(), request) == expected
    given_up.cancel()
    await open_calls.pop().done_writing()
    assert (await patient.read()).result.sequence_length == 1
    patient.cancel()
    for call in open_calls:
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert await all_slots_free(system)


async def test_a_cancelled_stream_frees_its_slot(system: System) -> None:
    call = system.target.Verify()
    await call.write(target_pb2.VerifyRequest(token_ids=[1] * 400))
    call.cancel()
    assert await all_slots_free(system)


async def test_undecodable_bytes_do_no_harm(system: System) -> None:
    async with grpc.aio.insecure_channel(system.address) as channel:
        call = channel.unary_unary("/outrider.v1.GenerationService/Generate")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"\xff\xff\xff")
    await system.generate("the cat", max_new_tokens=2)


async def all_slots_free(system: System) -> bool:
    """Waits until both services have all their slots back."""
    async with asyncio.timeout(10):
        while system.verifier.num_free_slots < 4 or system.drafter.num_free_slots < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return True
