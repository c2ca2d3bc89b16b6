from __future__ import annotations

import pytest

from orchestrator.decoder import Step, decode
from orchestrator.latency import CriticalPath
from outrider.errors import ServiceUnavailable
from tests.fakes import FakeDrafter, FakeVerifier, NextToken


def target_model(tokens: list[int]) -> int:
    return (sum(tokens) * 7 + len(tokens)) % 50


def unrelated_model(tokens: list[int]) -> int:
    return (sum(tokens) * 3 + 1) % 50


def mostly_right_model(tokens: list[int]) -> int:
    return target_model(tokens) if len(tokens) % 4 else 0


def plain_decoding(prompt: list[int], max_length: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < max_length:
        tokens.append(target_model(tokens))
    return tokens[len(prompt) :]


async def run(
    drafter: FakeDrafter | None, k: int, max_length: int = 40, verifier: FakeVerifier | None = None
) -> list[Step]:
    verifier = verifier or FakeVerifier(target_model)
    steps = decode([1, 2, 3], max_length, verifier, drafter, k, CriticalPath())
    return [step async for step in steps]


def text(steps: list[Step]) -> list[int]:
    return [token_id for step in steps for token_id in step.token_ids]


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("draft_model", [target_model, unrelated_model, mostly_right_model])
async def test_output_is_plain_decoding_whatever_the_draft(draft_model: NextToken, k: int) -> None:
    steps = await run(FakeDrafter(draft_model), k)
    assert text(steps) == plain_decoding([1, 2, 3], 40)


@pytest.mark.parametrize("max_length", range(4, 16))
async def test_never_goes_beyond_max_length(max_length: int) -> None:
    steps = await run(FakeDrafter(target_model), 4, max_length)
    assert text(steps) == plain_decoding([1, 2, 3], max_length)


async def test_a_perfect_draft_is_accepted_whole() -> None:
    steps = await run(FakeDrafter(target_model), 4, max_length=3 + 1 + 5 * 3)
    assert [(s.num_draft_tokens, s.num_accepted_tokens) for s in steps[1:]] == [(4, 4)] * 3


async def test_without_draft_every_step_commits_one_token() -> None:
    steps = await run(None, 4)
    assert {(len(s.token_ids), s.num_draft_tokens) for s in steps} == {(1, 0)}


async def test_k_zero_never_calls_the_draft() -> None:
    drafter = FakeDrafter(target_model)
    await run(drafter, 0)
    assert drafter.calls == []


async def test_the_draft_reads_the_prompt_beside_the_target() -> None:
    drafter = FakeDrafter(target_model)
    await run(drafter, 3)
    assert drafter.calls[0] == ([1, 2, 3], 0)


@pytest.mark.parametrize("fails_at", range(5))
async def test_a_lost_draft_costs_speed_only(fails_at: int) -> None:
    drafter = FakeDrafter(mostly_right_model, fails_at=fails_at)
    steps = await run(drafter, 3)
    assert text(steps) == plain_decoding([1, 2, 3], 40)
    assert len(drafter.calls) == fails_at + 1  # it is not asked again


async def test_a_lost_target_is_an_error_after_what_was_committed() -> None:
    committed: list[int] = []
    verifier = FakeVerifier(target_model, fails_at=3)
    with pytest.raises(ServiceUnavailable):
        async for step in decode([1], 40, verifier, None, 0, CriticalPath()):
            committed.extend(step.token_ids)
    assert committed == plain_decoding([1], 4)


async def test_beyond_the_drafts_context_the_target_goes_on_alone() -> None:
    drafter = FakeDrafter(target_model, max_context_length=12)
    steps = await run(drafter, 4)
    assert text(steps) == plain_decoding([1, 2, 3], 40)
    assert all(len(tokens) + k <= 12 for tokens, k in drafter.calls)
