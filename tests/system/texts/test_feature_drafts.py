"""Drafts that read the target's hidden states, over real streams: the text is the target's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from outrider.errors import HiddenStateMismatch
from outrider.protocol import hidden_states
from tests.support.claims import needs_invariant
from tests.support.models.eagle3 import make_eagle3
from tests.support.system import System, running_system

PROMPT = "the cat sat on the mat and the dog sat on the"
NUM_TOKENS = 28

GREEDY: dict[str, Any] = {}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 1234}

# Draft lengths, each with predrafts or none, and with prompt lookup or without.
WAYS = ((1, 0, False), (1, 4, True), (2, 1, False), (4, 4, False), (7, 0, True), (7, 4, False))


async def text(
    system: System, k: int | None, prompt: str = PROMPT, **fields: Any
) -> tuple[list[int], int]:
    """The tokens of a text, and how many the draft service proposed for it."""
    response = await system.generate(
        prompt,
        max_new_tokens=NUM_TOKENS,
        **({} if k is None else {"num_speculative_tokens": k}),
        ignore_eos=True,
        **fields,
    )
    assert response.draft_failure == ""
    counts = response.speculation
    return list(response.token_ids), counts.num_draft_tokens - counts.num_lookup_draft_tokens


async def check_texts(system: System, prompt: str = PROMPT, ways: Any = WAYS) -> None:
    """In every way, each with drafts of the draft service."""
    needs_invariant(system.verifier.engine)
    for sampling in (GREEDY, SAMPLED):
        expected, _ = await text(system, 0, prompt, **sampling)
        assert len(set(expected)) > 5  # a text that repeats one token proves nothing
        for k, num_predrafts, prompt_lookup in ways:
            fields = {"num_predrafts": num_predrafts, "prompt_lookup": prompt_lookup, **sampling}
            actual, num_proposed = await text(system, k, prompt, **fields)
            assert actual == expected, (k, fields)
            assert num_proposed > 0, (k, fields)


@pytest.mark.parametrize("draft_dtype", ["float32", "int8"])
async def test_text_is_the_targets_own(
    draft_dtype: str, tmp_path: Path, tiny_models: Callable[..., Path]
) -> None:
    draft = make_eagle3(tmp_path, layer_ids=[1, 0, 1])
    async with running_system(tiny_models("llama"), draft, draft_dtype) as system:
        await check_texts(system)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mistral", "gemma3"])
async def test_of_every_family(
    family: str, tmp_path: Path, tiny_models: Callable[..., Path]
) -> None:
    async with running_system(tiny_models(family), make_eagle3(tmp_path)) as system:
        for sampling in (GREEDY, SAMPLED):
            expected, _ = await text(system, 0, **sampling)
            assert (await text(system, 4, prompt_lookup=False, **sampling))[0] == expected


async def test_in_half_precision(tmp_path: Path, tiny_models: Callable[..., Path]) -> None:
    target, draft = tiny_models("llama"), make_eagle3(tmp_path)
    async with running_system(target, draft, "bfloat16", dtype="bfloat16") as system:
        await check_texts(system, ways=WAYS[3:4])


@pytest.mark.parametrize("is_original", [False, True])
async def test_a_prompt_that_is_longer_than_the_window(
    is_original: bool,
    tmp_path: Path,
    tiny_models: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its hidden states come in several messages, and from the middle on."""
    monkeypatch.setattr(hidden_states, "MAX_BYTES", 2048)
    draft = make_eagle3(tmp_path, is_original=is_original, window=None if is_original else 40)
    async with running_system(tiny_models("llama"), draft) as system:
        await check_texts(system, 4 * f"{PROMPT}, ")


async def test_a_target_that_is_far_away(tmp_path: Path, tiny_models: Callable[..., Path]) -> None:
    """It verifies in a pipeline, and runs ahead while the draft is idle."""
    draft = make_eagle3(tmp_path)
    async with running_system(tiny_models("llama"), draft, target_rtt_seconds=0.03) as system:
        for sampling in (GREEDY, SAMPLED):
            expected, _ = await text(system, 0, **sampling)
            for k in (1, 2, None):
                fields = {**sampling, "prompt_lookup": False}
                assert (await text(system, k, **fields))[0] == expected


async def test_texts_at_the_same_time(tmp_path: Path, tiny_models: Callable[..., Path]) -> None:
    """They share passes of both models, and prompts begin alike."""
    prompts = [f"{PROMPT} {PROMPT} {PROMPT} {number}" for number in range(8)]
    draft = make_eagle3(tmp_path)
    async with running_system(tiny_models("llama"), draft) as system:
        alone = [(await text(system, 0, prompt))[0] for prompt in prompts]
        for k in (3, None):
            texts = (text(system, k, prompt, prompt_lookup=False) for prompt in prompts)
            assert [tokens for tokens, _ in await asyncio.gather(*texts)] == alone
        assert system.verifier.scheduler.num_reused_tokens > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 32, "num_heads": 2, "num_kv_heads": 1}, "of size 32; those of .* have 64"),
        ({"layer_ids": [0, 5]}, "of the layers 0, 5; .* has 2 layers"),
    ],
)
async def test_a_pair_that_does_not_fit_is_refused_when_it_connects(
    settings: dict[str, Any], words: str, tmp_path: Path, tiny_models: Callable[..., Path]
) -> None:
    draft = make_eagle3(tmp_path, **settings)
    with pytest.raises(HiddenStateMismatch, match=words):
        async with running_system(tiny_models("llama"), draft):
            pass


VIEWS = {f"aten.{name}" for name in ("slice.Tensor", "view.default", "lift_fresh.default")}


class Operations(TorchDispatchMode):
    """Notes torch's operations in the thread that enters it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_no_service_computes_on_the_thread_of_its_loop(
    dtype: str, tmp_path: Path, tiny_models: Callable[..., Path]
) -> None:
    """A second thread that computes gets OpenMP threads of its own, which slow the engine's."""
    target, draft = tiny_models("llama"), make_eagle3(tmp_path)
    async with running_system(target, draft, dtype, dtype=dtype) as system:
        await text(system, 3)
        with Operations() as operations:
            await text(system, 3, num_predrafts=2)
            await text(system, 3, num_predrafts=0, **SAMPLED)
    assert operations.names <= VIEWS
