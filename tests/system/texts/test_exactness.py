"""Speculation changes the speed, never the text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from outrider.engine.loading.draft_vocabulary import write_draft_vocabulary
from outrider.errors import ConfigurationError
from outrider.v1 import draft_pb2
from tests.support.claims import needs_invariant
from tests.support.system import System, running_system, running_target

PROMPT = "the cat sat on the mat and the dog sat on the"

GREEDY: dict[str, Any] = {}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 1234}


async def token_ids(system: System, k: int, **fields: Any) -> list[int]:
    response = await system.generate(
        PROMPT, max_new_tokens=28, num_speculative_tokens=k, ignore_eos=True, **fields
    )
    assert response.usage.num_output_tokens == len(response.token_ids) == 28
    return list(response.token_ids)


def draft_of_kind(kind: str, tiny_models: Callable[..., Path]) -> Path | None:
    drafts = {
        "the target itself": lambda: tiny_models("llama"),
        "unrelated": lambda: tiny_models("gpt2", seed=7),
        "prompt lookup alone": lambda: None,
    }
    return drafts[kind]()


# Draft lengths, each with predrafts or none, and with prompt lookup or without.
WAYS = ((1, 0, False), (1, 4, True), (2, 1, False), (4, 4, False), (7, 0, True), (7, 4, False))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("the target itself", "float32"),
        ("unrelated", "float32"),
        ("unrelated", "bfloat16"),
        ("unrelated", "int4"),
        ("prompt lookup alone", "float32"),
    ],
)
async def test_text_is_the_targets_own(
    kind: str, dtype: str, tiny_models: Callable[..., Path]
) -> None:
    draft = draft_of_kind(kind, tiny_models)
    async with running_system(tiny_models("llama"), draft, dtype=dtype) as system:
        needs_invariant(system.verifier.engine)
        for sampling in (GREEDY, SAMPLED):
            expected = await token_ids(system, 0, **sampling)
            assert len(set(expected)) > 5  # a text that repeats one token proves nothing
            for k, num_predrafts, prompt_lookup in WAYS:
                fields = {
                    "num_predrafts": num_predrafts if draft else 0,
                    "prompt_lookup": prompt_lookup or not draft,
                    **sampling,
                }
                assert await token_ids(system, k, **fields) == expected, (k, fields)


async def test_the_target_itself_as_draft_is_always_accepted(
    tiny_models: Callable[..., Path],
) -> None:
    async with running_system(tiny_models("llama"), tiny_models("llama")) as system:
        for fields in (GREEDY, SAMPLED):
            response = await system.generate(
                PROMPT,
                max_new_tokens=36,
                num_speculative_tokens=4,
                num_predrafts=0,
                ignore_eos=True,
                **fields,
            )
            speculation = response.speculation
            assert speculation.draft_acceptance_rate == 1.0
            assert speculation.num_steps == 7
            assert list(speculation.acceptance_histogram) == [0, 0, 0, 0, 7]
            assert speculation.mean_acceptance_length == 5.0


async def test_greedy_text_is_that_of_transformers(tiny_models: Callable[..., Path]) -> None:
    folder = tiny_models("llama")
    async with running_system(folder) as system:
        response = await system.generate(PROMPT, max_new_tokens=40, ignore_eos=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt_length = response.usage.num_prompt_tokens
    ids = encode(folder, PROMPT)
    assert len(ids) == prompt_length
    output = model.generate(
        torch.tensor([ids]), do_sample=False, min_new_tokens=40, max_new_tokens=40
    )
    expected = greedy_with_eos(model, ids, 40)
    assert list(response.token_ids) == expected
    assert output.shape[1] == prompt_length + 40


def encode(folder: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text).input_ids
    return ids


def greedy_with_eos(model: Any, ids: list[int], num_tokens: int) -> list[int]:
    """Plain greedy decoding that goes on after an EOS, without a cache."""
    tokens = list(ids)
    with torch.inference_mode():
        for _ in range(num_tokens):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(ids) :]


async def test_seeds_decide_the_text(tiny_models: Callable[..., Path]) -> None:
    async with running_system(tiny_models("llama")) as system:
        fields = {"max_new_tokens": 30, "temperature": 1.0, "ignore_eos": True}
        first = await system.generate(PROMPT, seed=1, **fields)
        again = await system.generate(PROMPT, seed=1, **fields)
        other = await system.generate(PROMPT, seed=2, **fields)
        drawn = await system.generate(PROMPT, **fields)
        repeated = await system.generate(PROMPT, seed=drawn.seed, **fields)
    assert first.token_ids == again.token_ids
    assert first.token_ids != other.token_ids
    assert drawn.token_ids == repeated.token_ids


async def test_a_draft_with_a_part_of_the_vocabulary(
    tmp_path: Path, tiny_models: Callable[..., Path]
) -> None:
    """It is the target but for its head, so it is right whenever it can say the token."""
    shutil.copytree(tiny_models("llama"), tmp_path, dirs_exist_ok=True)
    part = set(range(0, 300, 2))
    write_draft_vocabulary(tmp_path, sorted(part & set(range(259))))
    with pytest.raises(ConfigurationError, match="only be a draft"):
        async with running_target(tmp_path):
            pass
    async with running_system(tiny_models("llama"), tmp_path) as system:
        for sampling in (GREEDY, SAMPLED):
            expected = await token_ids(system, 0, **sampling)
            assert await token_ids(system, 1, **sampling) == expected
        call = system.draft.Propose()
        await call.write(draft_pb2.ProposeRequest(token_ids=[5], num_speculative_tokens=8))
        assert set((await call.read()).proposal.draft_token_ids) <= part


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        (("gpt_neox", {"vocab_size": 320}), ("gpt_neox", {"seed": 3, "vocab_size": 310})),
        (("gpt_neox", {"vocab_size": 310}), ("gpt_neox", {"seed": 3, "vocab_size": 320})),
        (("gpt2", {}), ("gpt2", {"seed": 3})),
    ],
    ids=["padded target", "padded draft", "gpt2"],
)
async def test_pairs_of_families(
    target: tuple[str, dict[str, Any]],
    draft: tuple[str, dict[str, Any]],
    tiny_models: Callable[..., Path],
) -> None:
    folders = [tiny_models(family, **settings) for family, settings in (target, draft)]
    async with running_system(*folders) as system:
        for sampling in (GREEDY, SAMPLED):
            expected = await token_ids(system, 0, **sampling)
            assert await token_ids(system, 4, **sampling) == expected


@pytest.mark.parametrize("dtype", ["float32", "int4"])
async def test_the_default_pair(dtype: str, real_target: Path) -> None:
    """The shipped draft says the target's own text, and much of it before the target does."""
    async with running_system(real_target, "default", "auto", dtype) as system:
        needs_invariant(system.verifier.engine)
        fields: dict[str, Any] = {
            "messages": [{"role": "user", "content": "Why do leaves turn red in autumn?"}],
            "max_new_tokens": 24,
        }
        alone = await system.generate("", num_speculative_tokens=0, **fields)
        num_accepted = num_drafted = 0
        for num_predrafts in (0, 4):
            text = await system.generate(
                "", num_speculative_tokens=2, num_predrafts=num_predrafts, **fields
            )
            assert text.token_ids == alone.token_ids
            num_accepted += text.speculation.num_accepted_tokens
            num_drafted += text.speculation.num_draft_tokens
        # Of any one text it may say little; a draft that says nothing is at 0.
        assert num_accepted > 0.2 * num_drafted, (num_accepted, num_drafted)
