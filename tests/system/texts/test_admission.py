"""What the public API refuses under load, and how it says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator.forecast import Work
from outrider.errors import ContextTooLong, DeadlineUnreachable, InvalidRequest, QueueFull
from outrider.protocol.channel import from_rpc_error
from outrider.v1 import generation_pb2, generation_pb2_grpc
from tests.support.system import System, running_system

LONG = generation_pb2.GenerateRequest(prompt="the cat", max_new_tokens=400, ignore_eos=True)


@pytest.fixture
async def system(tiny_models: Callable[..., Path]) -> AsyncIterator[System]:
    async with running_system(tiny_models("llama"), slots=1) as system:
        yield system


async def refusal(system: System, timeout: float | None = None, **fields: object) -> Exception:
    request = generation_pb2.GenerateRequest(**{"prompt": "hi", **fields})  # type: ignore[arg-type]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await system.generation.Generate(request, timeout=timeout)
    return from_rpc_error(caught.value)


async def test_a_full_queue_answers_with_the_time_to_come_back(system: System) -> None:
    admission = system.servicer.admission
    admission.max_queued = 1
    running = system.generation.GenerateStream(LONG)
    await running.read()
    waiting = asyncio.ensure_future(system.generate("the cat", max_new_tokens=2))
    for _ in range(1000):
        await asyncio.sleep(0.005)
        if admission.num_queued:
            break
    error = await refusal(system)
    assert isinstance(error, QueueFull)
    assert error.retry_after is not None
    assert error.retry_after > 0
    running.cancel()
    assert (await waiting).usage.num_output_tokens == 2


async def test_retries_by_grpc_come_back_when_they_are_told_to(system: System) -> None:
    """By its own reckoning this client would wait for minutes."""
    system.servicer.admission.max_queued = 0
    policy = {"maxAttempts": 2, "initialBackoff": "300s", "maxBackoff": "300s"}
    policy |= {"backoffMultiplier": 1, "retryableStatusCodes": ["RESOURCE_EXHAUSTED"]}
    config = {"methodConfig": [{"name": [{}], "retryPolicy": policy}]}
    options = [("grpc.service_config", json.dumps(config))]
    running = system.generation.GenerateStream(LONG)
    await running.read()
    async with grpc.aio.insecure_channel(system.address, options=options) as channel:
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        call = asyncio.ensure_future(
            stub.Generate(generation_pb2.GenerateRequest(prompt="hi", max_new_tokens=2), timeout=60)
        )
        for _ in range(1000):
            await asyncio.sleep(0.005)
            if system.servicer.admission.num_refused:
                break
        running.cancel()
        assert (await call).usage.num_output_tokens == 2
    assert system.servicer.admission.num_refused == 1


async def test_a_deadline_that_cannot_be_met_is_refused_before_it_passes(system: System) -> None:
    system.servicer.admission.forecast.saw_tokens(1, 1e6, 1)
    error = await refusal(system, timeout=60.0, max_new_tokens=100)  # though a slot is free
    assert isinstance(error, DeadlineUnreachable)
    system.servicer.admission.max_queue_seconds = 1e9
    running = system.generation.GenerateStream(LONG)
    await running.read()
    error = await refusal(system, timeout=60.0, max_new_tokens=100)
    assert isinstance(error, DeadlineUnreachable)
    running.cancel()


async def test_a_wait_that_would_be_too_long_is_refused_with_the_time_to_come_back(
    system: System,
) -> None:
    system.servicer.admission.forecast.saw_tokens(1, 1e6, 1)
    running = system.generation.GenerateStream(LONG)
    await running.read()
    error = await refusal(system)
    assert isinstance(error, QueueFull)
    assert error.retry_after is not None
    assert error.retry_after > 10
    running.cancel()


async def test_lengths_and_times_are_learned_from_requests(system: System) -> None:
    whole = await system.generate("the cat", max_new_tokens=40, ignore_eos=True)
    forecast = system.servicer.admission.forecast
    assert 0 < forecast.seconds(Work(4, 40), 1) < 60
    stop = whole.text[4:8]
    text = await system.generate("the cat", max_new_tokens=40, ignore_eos=True, stop_strings=[stop])
    assert text.usage.num_output_tokens < 30
    stopped = forecast.seconds(Work(4, 40, may_end=True), 1)
    assert 0 < stopped < 0.9 * forecast.seconds(Work(4, 40), 1)


async def test_a_prompt_that_is_too_long_by_its_bytes_is_not_split(system: System) -> None:
    tokenizer = system.servicer.pair.tokenizer
    splits: list[str] = []
    tokenizer._encode = lambda text, add_special_tokens: splits.append(text) or []  # type: ignore
    error = await refusal(system, prompt="cat " * 100_000)
    assert isinstance(error, ContextTooLong)
    assert not splits
    assert system.verifier.num_free_slots == 1


async def test_limits_of_a_request(system: System) -> None:
    system.servicer.max_new_tokens = 50
    for word, fields in (
        ("max_new_tokens", {"max_new_tokens": 51}),
        ("at most 16 stop strings", {"stop_strings": ["a"] * 17}),
        ("256 characters", {"stop_strings": ["a" * 257]}),
        ("must not be empty", {"stop_strings": ["a", ""]}),
    ):
        error = await refusal(system, **fields)
        assert isinstance(error, InvalidRequest)
        assert word in error.message
    assert (await system.generate("hi", max_new_tokens=50)).usage.num_output_tokens
    # Whoever asks for nothing in particular gets what there is to have.
    whole = await system.generate("hi", ignore_eos=True)
    assert whole.usage.num_output_tokens == 50


async def test_short_texts_share_the_memory_of_one_long_one(
    tiny_models: Callable[..., Path],
) -> None:
    """And a text that takes all of it waits for its turn."""
    short = generation_pb2.GenerateRequest(prompt="the cat", max_new_tokens=20, ignore_eos=True)
    long = generation_pb2.GenerateRequest(prompt="the cat", max_new_tokens=999, ignore_eos=True)
    async with running_system(
        tiny_models("llama"), slots=16, max_context_length=200, cached_tokens=200
    ) as system:
        scheduler = system.verifier.scheduler
        alone = await system.generation.Generate(short)
        length = alone.usage.num_prompt_tokens + 20
        reserved = set()

        async def read(request: generation_pb2.GenerateRequest) -> int:
            num_tokens = 0
            async for message in system.generation.GenerateStream(request):
                reserved.add(scheduler.num_reserved_tokens)
                num_tokens += len(message.pieces)
            return num_tokens

        requests = [short] * 9 + [long] + [short] * 3
        counts = await asyncio.gather(*map(read, requests))
        assert counts == [20] * 9 + [200 - alone.usage.num_prompt_tokens] + [20] * 3
        assert length < max(reserved - {200}) <= 200
        info = await system.generation.GetServerInfo(generation_pb2.GetServerInfoRequest())
        assert info.target.max_cached_tokens == 200
        assert 0 < info.target.num_cached_tokens <= 200
