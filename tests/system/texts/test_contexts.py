"""A draft whose context is shorter than the target's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from outrider.v1 import generation_pb2, generation_pb2_grpc
from tests.support.system import running_draft, running_orchestrator, running_target

PROMPT = "the cat sat on the mat"


@pytest.mark.parametrize("context", [2, 16])
async def test_behind_the_drafts_context_the_target_goes_on_alone(
    tiny_models: Callable[..., Path], context: int
) -> None:
    """Also where the prompt alone is longer."""
    async with AsyncExitStack() as stack:
        target, _ = await stack.enter_async_context(running_target(tiny_models("llama")))
        draft, _ = await stack.enter_async_context(
            running_draft(tiny_models("llama"), max_context_length=context)
        )
        address, _ = await stack.enter_async_context(running_orchestrator(target, draft))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        generation = generation_pb2_grpc.GenerationServiceStub(channel)
        for prompt in ("the", PROMPT):
            texts = [
                await generation.Generate(
                    generation_pb2.GenerateRequest(
                        prompt=prompt,
                        max_new_tokens=30,
                        ignore_eos=True,
                        num_speculative_tokens=k,
                    )
                )
                for k in (0, 1, 5)
            ]
            assert texts[0].token_ids == texts[1].token_ids == texts[2].token_ids
            assert len(texts[0].token_ids) == 30
            num_draft_tokens = [text.speculation.num_draft_tokens for text in texts]
            assert max(num_draft_tokens) <= context
            if (context, prompt) == (16, "the"):  # where there is room
                assert min(num_draft_tokens[1:]) > 0
