"""Several orchestrators at one pair of services."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from draft_service.drafters.model import ModelDrafter
from orchestrator.servicer import GenerationServicer
from outrider.client.client import AsyncClient
from outrider.errors import VocabularyMismatch
from target_service.verifier import Verifier
from tests.support.system import running_draft, running_orchestrator, running_target

PROMPTS = [f"{number}: the cat sat on the mat and" for number in range(12)]
NUM_TOKENS = 24


@dataclass
class Services:
    """A pair that orchestrators can be started at, until `stack` closes."""

    stack: AsyncExitStack
    target: str
    draft: str
    verifier: Verifier
    drafter: ModelDrafter

    async def orchestrator(self) -> tuple[AsyncClient, GenerationServicer]:
        """Another one."""
        address, servicer = await self.stack.enter_async_context(
            running_orchestrator(self.target, self.draft)
        )
        return await self.stack.enter_async_context(AsyncClient(address)), servicer


@pytest.fixture
async def services(tiny_models: Callable[..., Path]) -> AsyncIterator[Services]:
    model = tiny_models("llama")
    async with AsyncExitStack() as stack:
        target, verifier = await stack.enter_async_context(running_target(model))
        draft, drafter = await stack.enter_async_context(running_draft(model))
        yield Services(stack, target, draft, verifier, drafter)


async def test_orchestrators_that_share_a_pair_get_the_texts_that_each_would_get_alone(
    services: Services,
) -> None:
    """Each admits as many requests as there are slots, so that sessions wait in the services."""
    verifier, drafter = services.verifier, services.drafter
    num_free = verifier.num_free_slots, drafter.num_free_slots
    clients = [(await services.orchestrator())[0] for _ in range(3)]

    async def text(client: AsyncClient, prompt: str, k: int | None) -> list[int]:
        generation = await client.generate(
            prompt,
            max_new_tokens=NUM_TOKENS,
            num_speculative_tokens=k,
            prompt_lookup=False,
            ignore_eos=True,
        )
        return generation.token_ids

    alone = [await text(clients[0], prompt, 0) for prompt in PROMPTS]
    together = await asyncio.gather(
        *(
            text(client, prompt, k)
            for client, k in zip(clients, (None, 3, 0), strict=True)
            for prompt in PROMPTS
        )
    )
    assert together == 3 * alone
    await services.stack.aclose()
    assert (verifier.num_free_slots, drafter.num_free_slots) == num_free


async def test_a_target_that_comes_back_with_another_vocabulary_is_refused(
    services: Services,
) -> None:
    """Its texts would be made of tokens that mean something else."""
    client, servicer = await services.orchestrator()
    assert (await client.generate("the cat", max_new_tokens=2)).token_ids
    pair = servicer.pair
    pair.target_info = dataclasses.replace(pair.target_info, vocabulary_fingerprint="before")
    with pytest.raises(VocabularyMismatch, match="restart the orchestrator"):
        await client.generate("the cat", max_new_tokens=2)
