"""The public API: where texts end, what is refused, and what the report adds up to."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from transformers import PreTrainedTokenizerFast

from orchestrator.request import draw_seed
from orchestrator.sessions.pair import Pair
from outrider.errors import ContextTooLong, InvalidRequest, VocabularyMismatch
from outrider.protocol.channel import from_rpc_error
from outrider.v1 import generation_pb2
from tests.support.models.tiny_models import make_model
from tests.support.models.tiny_tokenizers import make_tokenizer, sentencepiece
from tests.support.system import (
    System,
    running_draft,
    running_system,
    running_target,
)
from tests.system.texts.test_protocol import all_slots_free

PROMPT = "the cat sat on the mat"


@pytest.fixture
async def system(tiny_models: Callable[..., Path]) -> AsyncIterator[System]:
    """The draft is the target itself, so that whole proposals are accepted."""
    async with running_system(tiny_models("llama"), tiny_models("llama")) as system:
        yield system


async def test_eos_inside_accepted_tokens_ends_the_text(tiny_models: Callable[..., Path]) -> None:
    """A token that plain decoding commits in the middle of the text is made the EOS."""
    async with running_system(tiny_models("llama")) as system:
        whole = (await system.generate(PROMPT, max_new_tokens=20, ignore_eos=True)).token_ids
    last = next(i for i in range(5, 20) if whole[i] not in whole[:i])
    folder, ids = tiny_models("llama", eos_token_id=whole[last]), whole[: last + 1]
    async with running_system(folder, tiny_models("llama")) as system:
        for k in (0, 2, 3, 7):  # the tiny draft does not know this EOS and drafts past it
            response = await system.generate(PROMPT, num_speculative_tokens=k)
            assert response.finish_reason == generation_pb2.FINISH_REASON_STOP
            assert response.token_ids == ids
            assert response.usage.num_output_tokens == len(ids)
        alone = await system.generate(PROMPT, num_speculative_tokens=0)
        assert response.text == alone.text


async def test_max_new_tokens_is_exact(system: System) -> None:
    for max_new_tokens in range(1, 13):
        response = await system.generate(
            PROMPT, max_new_tokens=max_new_tokens, num_speculative_tokens=5, ignore_eos=True
        )
        assert len(response.token_ids) == max_new_tokens
        assert response.finish_reason == generation_pb2.FINISH_REASON_LENGTH


async def test_a_stop_string_cuts_text_and_tokens(system: System) -> None:
    whole = await system.generate(PROMPT, max_new_tokens=40, ignore_eos=True)
    stop = whole.text[10:13]
    cut = whole.text.index(stop)
    for k in (0, 4):
        response = await system.generate(
            PROMPT,
            max_new_tokens=40,
            ignore_eos=True,
            stop_strings=[stop],
            num_speculative_tokens=k,
        )
        assert response.text == whole.text[:cut]
        assert response.finish_reason == generation_pb2.FINISH_REASON_STOP
        assert response.usage.num_output_tokens == len(response.token_ids) < 40
        assert list(response.token_ids) == list(whole.token_ids)[: len(response.token_ids)]


async def test_the_stream_carries_the_same_text_piece_by_piece(system: System) -> None:
    """Random tokens make random bytes: many pieces are parts of characters."""
    request = generation_pb2.GenerateRequest(
        prompt="ünïcödé 漢字 🦊", max_new_tokens=60, temperature=1.5, seed=5, ignore_eos=True
    )
    messages = [message async for message in system.generation.GenerateStream(request)]
    result = messages[-1].result
    pieces = [piece for message in messages for piece in message.pieces]
    assert "".join(piece.text for piece in pieces) == result.text
    assert [piece.token_id for piece in pieces] == list(result.token_ids)
    assert result.text == (await system.generation.Generate(request)).text
    assert all(not message.HasField("result") for message in messages[:-1])
    sources = Counter(piece.source for piece in pieces)
    counts, target = result.speculation, sources.pop(generation_pb2.TOKEN_SOURCE_TARGET)
    assert sources[generation_pb2.TOKEN_SOURCE_LOOKUP] == counts.num_lookup_accepted_tokens
    assert sources.total() == counts.num_accepted_tokens == len(pieces) - target


@pytest.mark.parametrize("k", [0, 4])
async def test_stages_add_up_to_the_wall_time(system: System, k: int) -> None:
    response = await system.generate(PROMPT, num_speculative_tokens=k, ignore_eos=True)
    latency = response.latency
    stages = {stage.stage: stage.duration_ns for stage in latency.critical_path}
    assert abs(sum(stages.values()) - latency.wall_ns) <= 0.01 * latency.wall_ns
    assert 0 < latency.ttft_ns < latency.wall_ns
    expected = (latency.wall_ns - latency.ttft_ns) / 63
    assert latency.tpot_ns == pytest.approx(expected, abs=1)
    assert {"tokenize", "prefill_target", "verify_compute", "detokenize"} <= stages.keys()
    assert ("draft_compute" in stages) == (k > 0)


async def test_counts_fit_each_other(tiny_models: Callable[..., Path]) -> None:
    async with running_system(tiny_models("llama"), tiny_models("gpt2", seed=7)) as system:
        response = await system.generate(PROMPT, num_speculative_tokens=3, ignore_eos=True)
    speculation = response.speculation
    histogram = list(speculation.acceptance_histogram)
    assert sum(histogram) == speculation.num_steps > 0
    assert sum(j * n for j, n in enumerate(histogram)) == speculation.num_accepted_tokens
    rate = speculation.num_accepted_tokens / speculation.num_draft_tokens
    assert speculation.draft_acceptance_rate == pytest.approx(rate)


@pytest.mark.parametrize("prepends", [False, True])
async def test_the_text_goes_on_where_the_prompt_ends(tmp_path: Path, prepends: bool) -> None:
    """Spaces of a sentencepiece vocabulary, which decoding the text alone would drop."""
    folder, tokenizer = make_model(tmp_path, "llama", vocab_size=8), sentencepiece(prepends, 0)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    async with running_system(folder) as system:
        for seed in range(4):
            request = generation_pb2.GenerateRequest(
                prompt="the cat sat on", max_new_tokens=6, temperature=2.0, seed=seed
            )
            result = await system.generation.Generate(request)
            prompt = tokenizer.encode(request.prompt).ids
            whole = tokenizer.decode(prompt + list(result.token_ids))
            assert request.prompt + result.text == whole
            messages = [message async for message in system.generation.GenerateStream(request)]
            pieces = [piece.text for message in messages for piece in message.pieces]
            assert "".join(pieces) == result.text


@pytest.mark.parametrize("continues", [False, True])
async def test_messages_go_through_the_chat_template(system: System, continues: bool) -> None:
    request = generation_pb2.GenerateRequest(max_new_tokens=8, continue_final_message=continues)
    request.messages.add(role="user", content="hi")
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    if continues:
        request.messages.add(role="assistant", content="the cat")
        rendered += "the cat"
    by_messages = await system.generation.Generate(request)
    by_prompt = await system.generate(rendered, max_new_tokens=8)
    assert by_messages.token_ids == by_prompt.token_ids
    assert by_messages.usage.num_prompt_tokens == by_prompt.usage.num_prompt_tokens


async def test_a_bare_prompt_is_a_whole_request(system: System) -> None:
    response = await system.generate("hi")
    assert 0 < response.usage.num_output_tokens <= 64
    assert response.num_target_threads == 1


async def test_bad_requests_are_refused_and_cost_no_slot(system: System) -> None:
    for prompt, kind in (("", InvalidRequest), ("word " * 2000, ContextTooLong)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await system.generate(prompt)
        assert isinstance(from_rpc_error(caught.value), kind)
        assert caught.value.code().name == kind.code.name
    assert await all_slots_free(system)


def test_drawn_seeds_are_numbers_that_json_clients_read_exactly() -> None:
    assert all(draw_seed() < 2**53 for _ in range(20))


async def test_the_context_limit_ends_the_text(tiny_models: Callable[..., Path]) -> None:
    async with running_system(
        tiny_models("llama"), tiny_models("llama"), max_context_length=32
    ) as system:
        response = await system.generate(PROMPT, max_new_tokens=64, ignore_eos=True)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await system.generate("the cat " * 20)
    assert response.usage.num_prompt_tokens + response.usage.num_output_tokens == 32
    assert response.finish_reason == generation_pb2.FINISH_REASON_CONTEXT_LIMIT
    error = from_rpc_error(caught.value)
    assert f"{error.metadata['num_prompt_tokens']} tokens" in error.message
    assert "limit is 32" in error.message


async def test_a_cancelled_stream_frees_both_slots(system: System) -> None:
    request = generation_pb2.GenerateRequest(prompt=PROMPT, max_new_tokens=400, ignore_eos=True)
    call = system.generation.GenerateStream(request)
    await call.read()
    assert system.verifier.num_free_slots == system.drafter.num_free_slots == 3
    call.cancel()
    assert await all_slots_free(system)


async def test_a_deadline_frees_both_slots(system: System) -> None:
    """It passes behind the first token, at whatever speed: the target waits for it."""
    engine, go_on, passes = system.verifier.engine, threading.Event(), itertools.count()

    def held(run_pass: Callable[..., Any]) -> Callable[..., Any]:
        def held_pass(*arguments: Any) -> Any:
            assert next(passes) == 0 or go_on.wait(30)
            return run_pass(*arguments)

        return held_pass

    engine.forward, engine.choose = held(engine.forward), held(engine.choose)  # type: ignore[method-assign]
    request = generation_pb2.GenerateRequest(prompt=PROMPT, ignore_eos=True)
    call = system.generation.GenerateStream(request, timeout=0.2)
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    go_on.set()
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED, await call.details()
    assert await all_slots_free(system)


async def test_a_draft_that_fails_costs_speed_only(system: System) -> None:
    alone = await system.generate(PROMPT, num_speculative_tokens=0, ignore_eos=True)
    request = generation_pb2.GenerateRequest(
        prompt=PROMPT, num_speculative_tokens=2, ignore_eos=True
    )
    call = system.generation.GenerateStream(request)
    await call.read()
    await asyncio.to_thread(system.drafter.close)
    async with asyncio.timeout(30):
        while not (message := await call.read()).HasField("result"):
            pass
    assert message.result.token_ids == alone.token_ids
    assert message.result.draft_failure == "the draft: the service is shutting down"
    assert alone.draft_failure == ""  # it was not to take part
    again = await system.generation.Generate(request)  # now without a draft from the start
    assert again.token_ids == alone.token_ids
    assert again.speculation.num_steps == 0
    assert again.draft_failure


async def test_more_requests_than_slots_wait_their_turn(system: System) -> None:
    alone = await system.generate(PROMPT, max_new_tokens=12, ignore_eos=True)
    responses = await asyncio.gather(
        *(system.generate(PROMPT, max_new_tokens=12, ignore_eos=True) for _ in range(12))
    )
    assert all(response.token_ids == alone.token_ids for response in responses)


async def test_different_vocabularies_are_refused_when_the_pair_connects(
    tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    draft = make_model(tmp_path / "other", "gpt2")
    make_tokenizer(draft, text="wholly other words make other merges of the same letters\n" * 3)
    async with (
        running_target(tiny_models("llama")) as (target_address, _),
        running_draft(draft) as (draft_address, _),
    ):
        with pytest.raises(VocabularyMismatch) as caught:
            await Pair.connect(target_address, draft_address)
    message = caught.value.message
    assert str(draft) in message
    assert str(tiny_models("llama")) in message
    assert "id " in message


async def test_server_info_names_both_models(system: System) -> None:
    info = await system.generation.GetServerInfo(generation_pb2.GetServerInfoRequest())
    assert info.target.dtype == info.draft.dtype == "float32"
    assert info.has_chat_template
    assert info.default_num_predrafts == 4
