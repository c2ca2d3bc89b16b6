"""Sessions whose prompts begin alike: one reads, the others copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from outrider.protocol.messages import GREEDY
from target_service.verifier import Verifier
from tests.support.system import running_target

SHARED = [5 + i * i % 200 for i in range(60)]
ENDINGS = [[7, 8, 9], [9], [8] * 30, []]


async def continued(verifier: Verifier, prompt: Sequence[int], num_tokens: int = 8) -> list[int]:
    session = await verifier.open_session_in_order()
    tokens, held = list(prompt), 0
    for _ in range(num_tokens):
        result = await session.verify(held, tokens[held:], (), GREEDY)
        held = result.sequence_length
        tokens.append(result.next_token_id)
    session.close()
    return tokens


async def test_a_shared_prefix_changes_no_text(tiny_models: Callable[..., Path]) -> None:
    expected = []
    for ending in ENDINGS:
        async with running_target(tiny_models("llama")) as (_, verifier):
            expected.append(await continued(verifier, SHARED + ending))
            assert verifier.scheduler.num_reused_tokens == 0
    async with running_target(tiny_models("llama"), slots=2) as (_, verifier):
        for _ in range(2):
            actual = [await continued(verifier, SHARED + ending) for ending in ENDINGS]
            assert actual == expected
        assert verifier.scheduler.num_reused_tokens > 7 * 50
