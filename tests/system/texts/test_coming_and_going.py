"""An orchestrator whose draft is not there yet, comes, and goes."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from outrider.errors import ServiceUnavailable
from outrider.observability.metrics import Metrics
from outrider.v1 import generation_pb2, generation_pb2_grpc
from outrider_bench.harness.delay import DelayingProxy
from tests.support.models.eagle3 import make_eagle3
from tests.support.system import running_draft, running_orchestrator, running_target

PROMPT = "the cat sat on the mat"


async def test_a_draft_may_come_later_and_go(tiny_models: Callable[..., Path]) -> None:
    """It is not waited for, and what is served says that it is missing."""
    async with AsyncExitStack() as stack, AsyncExitStack() as until_lost:
        target, _ = await until_lost.enter_async_context(running_target(tiny_models("llama")))
        with socket.create_server(("127.0.0.1", 0)) as free:
            draft = f"127.0.0.1:{free.getsockname()[1]}"
        metrics: dict[str, Metrics] = {}
        address, _ = await stack.enter_async_context(running_orchestrator(target, draft, metrics))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)

        async def generate() -> generation_pb2.GenerateResponse:
            request = generation_pb2.GenerateRequest(
                prompt=PROMPT, max_new_tokens=4, num_speculative_tokens=2, ignore_eos=True
            )
            response: generation_pb2.GenerateResponse = await stub.Generate(request)
            return response

        async def outage() -> generation_pb2.DraftOutage | None:
            info = await stub.GetServerInfo(generation_pb2.GetServerInfoRequest())
            assert info.HasField("draft") != info.HasField("draft_outage")
            return info.draft_outage if info.HasField("draft_outage") else None

        async def up(service: str) -> float | None:
            return await asyncio.to_thread(
                metrics["orchestrator"].registry.get_sample_value, f"outrider_{service}_up"
            )

        missing = await outage()
        assert missing is not None
        assert missing.address == draft
        assert "cannot connect" in missing.reason
        assert 0 <= time.time() - missing.since_ms / 1e3 < 60
        assert [await up("draft"), await up("target")] == [0, 1]
        without = await generate()
        assert without.draft_failure == missing.reason

        async with running_draft(tiny_models("gpt2", seed=7), address=draft):
            for _ in range(3000):
                if await outage() is None:
                    break
                await asyncio.sleep(0.01)
            assert await up("draft") == 1
            joined = await generate()
            assert joined.speculation.num_draft_tokens > 0
            assert joined.draft_failure == ""
        assert await outage() is not None
        assert joined.token_ids == without.token_ids == (await generate()).token_ids

        await until_lost.aclose()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert f"the target at {target} cannot be used since 20" in (caught.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError, match=f"{target} cannot be used since 20"):
            await outage()


@pytest.mark.parametrize("reads_hidden_states", [False, True])
async def test_a_draft_that_is_restarted_in_the_middle_of_a_text(
    reads_hidden_states: bool, tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_models("llama")
    draft_folder = make_eagle3(tmp_path, window=16) if reads_hidden_states else folder
    async with AsyncExitStack() as stack, AsyncExitStack() as first_draft:
        target, _ = await stack.enter_async_context(running_target(folder))
        far = stack.enter_context(DelayingProxy(target, 0.02)).address
        draft, _ = await first_draft.enter_async_context(running_draft(draft_folder))
        address, servicer = await stack.enter_async_context(running_orchestrator(far, draft))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)

        def text(k: int) -> Any:
            request = generation_pb2.GenerateRequest(
                prompt=PROMPT, max_new_tokens=100, num_speculative_tokens=k, ignore_eos=True
            )
            return stub.GenerateStream(request)

        messages = aiter(text(1))
        for _ in range(3):
            await anext(messages)
        await first_draft.aclose()
        link = servicer.pair.draft_link
        assert link is not None
        with pytest.raises(ServiceUnavailable):
            await link.look()
        async with running_draft(draft_folder, address=draft) as (_, drafter):
            while link.outage is not None:
                with suppress(ServiceUnavailable):  # gRPC waits before it tries again
                    await link.look()
                await asyncio.sleep(0.01)
            result = [message async for message in messages][-1].result
            assert drafter.engine.passes.jobs.total > 0
        assert "the draft" in result.draft_failure
        assert result.token_ids == [message async for message in text(0)][-1].result.token_ids
