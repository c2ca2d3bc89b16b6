"""Rotary embeddings that change with the length of a text, and windows, beyond their boundaries."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AttentionInterface, AutoModelForCausalLM

from outrider.engine import network
from outrider.engine import self_check as boundary_check
from outrider.engine.attention.forward_pass import IMPLEMENTATION, slot_attention
from outrider.engine.attention.rope import Rope, rope_of
from outrider.engine.engine import Engine
from outrider.engine.loading.model_config import context_length
from outrider.engine.scheduling.slots import Slots
from outrider.engine.self_check import check_boundaries
from outrider.errors import ConfigurationError, UnsupportedModel
from tests.support.models.tiny_models import make_model
from tests.support.recording_engine import Steps
from tests.support.system import options, running_system

ORIGINAL = 40
NUM_TOKENS = 36
PROMPT = "the cat sat on the mat"
LONG_PROMPT = (
    PROMPT + " and the dog sat on the log while the rain fell on the roof, said the farmer"
)

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": ORIGINAL,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": ORIGINAL,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": ORIGINAL},
    ),
    "dynamic": ("qwen3", {"rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL}),
    "yarn": ("llama", {"rope_parameters": YARN, "max_position_embeddings": ORIGINAL}),
}


def continuation(folder: Path, ids: list[int], num_tokens: int, kind: str) -> list[int]:
    """By transformers; with longrope as a whole for each token, which is how Phi-3 goes on."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    text = torch.tensor([ids])
    with torch.inference_mode():
        if kind != "longrope":
            text = model.generate(
                text, max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
            )
            return text[0, len(ids) :].tolist()
        for _ in range(num_tokens):
            logits = model(text, use_cache=False).logits[0, -1:]
            text = torch.cat((text, logits.argmax(-1, keepdim=True)), dim=1)
    return text[0, len(ids) :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
async def test_texts_beyond_the_original_length_equal_transformers(
    tmp_path: Path, kind: str
) -> None:
    """However many tokens are drafted, and beside a text of another length."""
    family, settings = CASES[kind]
    folder = make_model(tmp_path, family, **settings)
    async with running_system(folder, folder, max_context_length=4 * ORIGINAL) as system:

        async def generate(prompt: str, k: int | None) -> list[int]:
            fields = {} if k is None else {"num_speculative_tokens": k}
            response = await system.generate(
                prompt, max_new_tokens=NUM_TOKENS, ignore_eos=True, **fields
            )
            return list(response.token_ids)

        for prompt in (PROMPT, LONG_PROMPT):
            ids = system.servicer.pair.tokenizer.encode(prompt)
            assert (len(ids) > ORIGINAL) == (prompt is LONG_PROMPT)
            expected = continuation(folder, ids, NUM_TOKENS, kind)
            assert await generate(prompt, 7) == expected
            other = LONG_PROMPT if prompt is PROMPT else PROMPT
            texts = await asyncio.gather(*(generate(p, k) for p, k in [(prompt, 0), (other, 3)]))
            assert texts[0] == expected


@pytest.mark.slow
async def test_a_target_that_goes_on_alone_crosses_the_original_length(tmp_path: Path) -> None:
    family, settings = CASES["longrope"]
    folder = make_model(tmp_path, family, **settings)
    async with running_system(
        folder, max_context_length=4 * ORIGINAL, target_rtt_seconds=0.02
    ) as system:
        ids = system.servicer.pair.tokenizer.encode(PROMPT)
        response = await system.generate(
            PROMPT, max_new_tokens=NUM_TOKENS, ignore_eos=True, num_predrafts=0, prompt_lookup=False
        )
        assert list(response.token_ids) == continuation(folder, ids, NUM_TOKENS, "longrope")


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_the_load_check_sees_frequencies_that_are_not_by_sequence(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, settings = CASES[kind]
    config = small_config(family, **settings)
    check_boundaries(config, set(), 4 * ORIGINAL, "model")
    monkeypatch.setattr(network, "rotate_by_sequence", lambda *_: None)
    check_boundaries(config, set(), ORIGINAL, "model")  # no text gets there
    with pytest.raises(UnsupportedModel, match="original length"):
        check_boundaries(config, set(), 4 * ORIGINAL, "model")


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_the_load_check_sees_windows_that_are_not_heeded(family: str) -> None:
    config = small_config(family, sliding_window=32)
    check_boundaries(config, {32}, 64, "model")

    def without_window(*args: Any, sliding_window: int | None = None, **kwargs: Any) -> Any:
        return slot_attention(*args, **kwargs)

    AttentionInterface.register(IMPLEMENTATION, without_window)
    try:
        with pytest.raises(UnsupportedModel, match="sliding window"):
            check_boundaries(config, {32}, 64, "model")
    finally:
        AttentionInterface.register(IMPLEMENTATION, slot_attention)


def test_attention_within_chunks_is_refused_by_name(tmp_path: Path) -> None:
    config = transformers.Llama4TextConfig(attention_chunk_size=32, max_position_embeddings=512)
    with pytest.raises(UnsupportedModel, match=r"chunks of 32 tokens .* --max-context-length 32"):
        check_boundaries(config, set(), 64, "model")
    check_boundaries(config, set(), 32, "model")


def test_attention_scaled_by_places_is_refused_by_name() -> None:
    config = transformers.Llama4TextConfig(
        attention_chunk_size=None, floor_scale=32, layer_types=["full_attention"] * 48
    )
    with pytest.raises(UnsupportedModel, match=r"from 32 tokens .* --max-context-length 31"):
        check_boundaries(config, set(), 32, "model")
    check_boundaries(config, set(), 31, "model")


def small_config(family: str, **settings: Any) -> Any:
    class_name = {"gemma3": "Gemma3TextConfig", "qwen3": "Qwen3Config"}.get(
        family, f"{family.capitalize()}Config"
    )
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings |= {"num_hidden_layers": 2, "vocab_size": 100, "pad_token_id": 0}
    return getattr(transformers, class_name)(**sizes, **settings)


@pytest.mark.parametrize(
    ("settings", "longest"),
    [
        ({}, 40),
        ({"rope_parameters": LINEAR}, 160),
        ({"rope_parameters": DYNAMIC}, 160),
        ({"rope_parameters": YARN}, 160),
        # Some say the stretched length themselves.
        ({"rope_parameters": YARN, "max_position_embeddings": 160}, 160),
        ({"rope_parameters": LONGROPE, "max_position_embeddings": 160}, 160),
    ],
)
def test_a_stretched_context_may_be_served(settings: dict[str, Any], longest: int) -> None:
    config = small_config("llama", **{"max_position_embeddings": 40, **settings})
    assert context_length(config, longest) == longest
    assert context_length(config, None) == longest
    with pytest.raises(ConfigurationError, match=f"context is {longest} tokens"):
        context_length(config, longest + 1)


def test_a_draft_has_the_context_that_its_model_has(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama", max_position_embeddings=40)
    assert Engine(options(folder, max_context_length=64, is_draft=True)).max_context_length == 40
    with pytest.raises(ConfigurationError, match="64 are too many"):
        Engine(options(folder, max_context_length=64))


def test_draft_tokens_end_where_frequencies_change() -> None:
    rope = Rope("longrope", 40)
    draft = [1, 2, 3]
    assert [len(rope.with_same_frequencies(n, draft)) for n in (36, 38, 40, 41)] == [3, 2, 0, 3]
    assert [rope.frequencies(n) for n in (1, 40, 41, 99)] == [40, 40, 41, 41]
    assert [Rope("dynamic", 40).frequencies(n) for n in (1, 40, 41, 99)] == [40, 40, 41, 99]
    assert Rope("dynamic", 40).with_same_frequencies(38, draft) == draft


def test_layers_that_change_at_different_lengths_are_refused() -> None:
    config = small_config("llama")
    other = {**LONGROPE, "original_max_position_embeddings": 50}
    config.rope_parameters = {"full_attention": LONGROPE, "sliding_attention": other}
    with pytest.raises(UnsupportedModel, match="different lengths"):
        rope_of(config)


def test_what_was_read_with_other_frequencies_is_not_found_by_a_job_that_missed_a_pass() -> None:
    """It is asked again where it is placed, and the slot still holds what it did."""
    slots = Slots(1)
    slots.append(0, range(30))
    slots.frequencies[0] = ORIGINAL
    job = Steps(0, ORIGINAL + 20)
    assert [slots.place(job, Rope("longrope", ORIGINAL)) for _ in range(2)] == [(0, 0)] * 2


def test_numbers_that_are_none_do_not_pass_the_load_check(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([0.0, math.nan])
    monkeypatch.setattr(boundary_check, "difference", lambda *_: next(found))
    with pytest.raises(UnsupportedModel, match="relative difference nan"):
        check_boundaries(small_config("mistral", sliding_window=32), {32}, 64, "model")
