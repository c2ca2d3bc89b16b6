"""A target that is far away, over real streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outrider.v1 import target_pb2
from tests.support.system import running_system

PROMPT = "the cat sat on the mat"
FAR_SECONDS = 0.06

GREEDY: dict[str, Any] = {}
SAMPLED = {"temperature": 0.9, "seed": 7}


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_a_draft_that_is_right_saves_round_trips(
    sampling: dict[str, Any], tiny_models: Callable[..., Path]
) -> None:
    """The draft is the target itself, so whatever it predrafts comes true."""
    target = tiny_models("llama")
    fields = {"max_new_tokens": 25, "num_speculative_tokens": 2, "ignore_eos": True, **sampling}
    async with running_system(target, target, target_rtt_seconds=FAR_SECONDS) as system:
        waiting = await system.generate(PROMPT, num_predrafts=0, **fields)
        ahead = await system.generate(PROMPT, num_predrafts=2, **fields)
    assert ahead.token_ids == waiting.token_ids
    assert waiting.speculation.num_pipelined_steps == 0
    # After the first step at most every other one waits for the whole way.
    assert ahead.speculation.num_pipelined_steps >= (ahead.speculation.num_steps - 1) // 2 > 0
    assert ahead.speculation.num_stale_steps == 0
    stages = {stage.stage: stage.duration_ns for stage in ahead.latency.critical_path}
    assert min(stages.values()) >= 0
    assert sum(stages.values()) == ahead.latency.wall_ns


async def test_a_draft_that_is_wrong_changes_nothing(tiny_models: Callable[..., Path]) -> None:
    target, draft = tiny_models("llama"), tiny_models("gpt2", seed=7)
    fields = {"max_new_tokens": 16, "ignore_eos": True}
    async with running_system(target, draft, target_rtt_seconds=FAR_SECONDS) as system:
        alone = await system.generate(PROMPT, num_speculative_tokens=0, **fields)
        paired = await system.generate(PROMPT, num_speculative_tokens=2, trace=True, **fields)
    assert paired.token_ids == alone.token_ids
    assert paired.speculation.num_stale_steps > 0


def num_unasked(generation: Any) -> int:
    """VerifyResults that came without a request."""
    sessions = [one for one in generation.trace if (one.track, one.lane) == ("target", "session")]
    return sum(one.name == "run ahead" for one in sessions)


async def test_a_far_target_goes_on_alone_while_the_draft_rests(
    tiny_models: Callable[..., Path],
) -> None:
    target = tiny_models("llama")
    fields = {"max_new_tokens": 40, "ignore_eos": True, "trace": True}
    async with running_system(target, target, target_rtt_seconds=FAR_SECONDS) as system:
        drafted = await system.generate(PROMPT, num_speculative_tokens=2, **fields)
        alone = await system.generate(PROMPT, num_speculative_tokens=0, **fields)
    assert alone.token_ids == drafted.token_ids
    assert num_unasked(drafted) == 0
    assert num_unasked(alone) >= 36  # all but one in 33
    stages = {stage.stage: stage.duration_ns for stage in alone.latency.critical_path}
    assert min(stages.values()) >= 0
    assert sum(stages.values()) == alone.latency.wall_ns


async def test_targets_that_go_on_alone_share_their_passes(
    tiny_models: Callable[..., Path],
) -> None:
    target = tiny_models("llama")
    fields = {"max_new_tokens": 40, "num_speculative_tokens": 0, "ignore_eos": True, "trace": True}
    prompts = [f"{PROMPT} {number}" for number in range(12)]
    async with running_system(target, target, target_rtt_seconds=FAR_SECONDS, slots=8) as system:
        singly = [await system.generate(prompt, **fields) for prompt in prompts]
        together = await asyncio.gather(*(system.generate(p, **fields) for p in prompts))
    assert [text.token_ids for text in together] == [text.token_ids for text in singly]
    assert all(num_unasked(text) >= 36 for text in together)


async def test_what_the_target_goes_on_with_comes_after_a_half_close(
    tiny_models: Callable[..., Path],
) -> None:
    async with running_system(tiny_models("llama")) as system:
        call = system.target.Verify()
        await call.write(target_pb2.VerifyRequest(token_ids=[5, 6, 7], num_run_ahead_tokens=5))
        await call.done_writing()
        responses = [response async for response in call]
    kinds = [response.WhichOneof("response") for response in responses]
    assert kinds == ["result"] + ["run_ahead"] * 5
    results = [getattr(each, kind) for each, kind in zip(responses, kinds, strict=True)]
    assert [result.context_length for result in results] == [3, 4, 5, 6, 7, 8]
