"""The engine's logits against transformers' own, for each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, ModernBertDecoderConfig

from outrider.engine.attention.chunk_batch import batch_of
from outrider.engine.attention.forward_pass import Pass, attending, slot_attention
from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.chunk import Chunk
from outrider.engine.cpu.fused_llama import Layers
from outrider.engine.device import choose_device, choose_dtype
from outrider.engine.engine import Engine
from outrider.engine.network import TransformersNetwork
from outrider.engine.options import EngineOptions
from outrider.engine.shapes import ANY_SHAPES
from outrider.errors import ConfigurationError, ModelNotFound, UnsupportedModel
from tests.support.models.tiny_models import SUPPORTED_FAMILIES, make_model

IDS = torch.randint(5, 250, (60,), generator=torch.Generator().manual_seed(1)).tolist()
OTHER_IDS = torch.randint(5, 250, (60,), generator=torch.Generator().manual_seed(2)).tolist()


def engine_of(folder: Path, dtype: str = "float32", max_context_length: int = 128) -> Engine:
    return Engine(
        EngineOptions(str(folder), "cpu", dtype, slots=3, max_context_length=max_context_length)
    )


def reference(folder: Path, ids: list[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """[len(ids), vocab_size] from transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_packed_ragged_passes_and_rollback(family: str, tiny_models: Callable[..., Path]) -> None:
    """Beyond the sliding window of those that have one (16 tokens)."""
    folder = tiny_models(family)
    engine = engine_of(folder)
    expected, other = reference(folder, IDS), reference(folder, OTHER_IDS)
    first, short = engine.forward([Chunk(1, 0, IDS[:30], 30), Chunk(2, 0, OTHER_IDS[:7], 7)])
    step, wrong_turn = engine.forward(
        [Chunk(2, 7, OTHER_IDS[7:8], 1), Chunk(1, 30, OTHER_IDS[:20], 2)]
    )
    assert wrong_turn.shape[0] == 2
    back, rest = engine.forward([Chunk(1, 30, IDS[30:], 30), Chunk(2, 8, OTHER_IDS[8:], 52)])
    tolerance = {"atol": 1e-4 * float(expected.std()) * 10, "rtol": 1e-4}
    torch.testing.assert_close(torch.cat([first, back]), expected, **tolerance)
    torch.testing.assert_close(torch.cat([short, step, rest]), other, **tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_transformers(
    dtype: str, tiny_models: Callable[..., Path]
) -> None:
    folder = tiny_models("llama")
    [logits] = engine_of(folder, dtype).forward([Chunk(0, 0, IDS, len(IDS))])
    expected = reference(folder, IDS)
    assert (logits.float() - expected).abs().mean() < 0.05 * expected.std()


def test_only_the_wanted_rows_come_back(tiny_models: Callable[..., Path]) -> None:
    engine = engine_of(tiny_models("llama"))
    logits = engine.forward([Chunk(0, 0, IDS[:9], 0), Chunk(1, 0, IDS[:5], 1)])
    assert [tuple(rows.shape) for rows in logits] == [
        (0, engine.vocab_size),
        (1, engine.vocab_size),
    ]
    assert engine.forward([Chunk(0, 9, IDS[9:12], 0)])[0].shape == (0, engine.vocab_size)


@pytest.mark.parametrize(
    ("family", "reason"), [("bloom", "the slot cache .0 of 2 do"), ("gemma2", "with softcap")]
)
def test_an_unsupported_family_is_refused_by_name(
    family: str, reason: str, tiny_models: Callable[..., Path]
) -> None:
    with pytest.raises(UnsupportedModel, match=f"{family}.*{reason}"):
        engine_of(tiny_models(family))


def test_a_family_that_must_know_a_padding_token_keeps_it() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = ModernBertDecoderConfig(vocab_size=9, intermediate_size=8, pad_token_id=3, **sizes)
    network = TransformersNetwork(AutoModelForCausalLM.from_config(config))
    assert network.model.config.pad_token_id == 3


def as_layers_attend(num_tokens: int = 3, **asked: Any) -> Tensor:
    chunk = Chunk(0, 0, IDS[:num_tokens], 1)
    forward_pass = Pass([chunk], SlotCache(1, 8), torch.device("cpu"), ANY_SHAPES, together=False)
    query, key = torch.randn(1, 4, num_tokens, 8), torch.randn(1, 2, num_tokens, 8)
    layer = SimpleNamespace(layer_idx=0)
    with attending(forward_pass):
        return slot_attention(layer, query, key, key, **asked)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["attention_mask", "block_indices", "softcap", "never_heard_of"])
def test_what_a_layer_asks_for_is_heeded_or_refused(name: str) -> None:
    with pytest.raises(NotImplementedError, match=name):
        as_layers_attend(**{name: torch.zeros(1)})
    as_layers_attend(**{name: None}, dropout=0.0, position_ids=torch.zeros(1), use_cache=False)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_layers_may_view_what_attention_gives(num_tokens: int) -> None:
    assert as_layers_attend(num_tokens).is_contiguous()


def test_an_unknown_model_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no-such-model"):
        engine_of(tmp_path / "no-such-model")


def test_weights_that_end_too_early_are_not_read(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "cut", "llama")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelNotFound, match="cut"):
        engine_of(folder)


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_on_a_gpu_no_attention_is_planned_for_every_length(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        assert choose_device(name).type == "cuda"
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was_enabled)


def test_impossible_settings_are_refused(tiny_models: Callable[..., Path]) -> None:
    folder = str(tiny_models("llama"))
    with pytest.raises(ConfigurationError, match="512"):
        engine_of(tiny_models("llama"), max_context_length=513)
    with pytest.raises(ConfigurationError, match="no room"):
        engine_of(tiny_models("llama"), max_context_length=1)
    assert engine_of(tiny_models("llama"), max_context_length=2).max_context_length == 2
    with pytest.raises(ConfigurationError, match="abacus"):
        Engine(EngineOptions(folder, device="abacus"))
    with pytest.raises(ConfigurationError, match="cuda:99"):
        Engine(EngineOptions(folder, device="cuda:99"))
    with pytest.raises(ConfigurationError, match="int3"):
        choose_dtype("int3", torch.device("cpu"))


def test_a_cpu_computes_in_float32_unless_asked_otherwise() -> None:
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda")) == torch.bfloat16


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_on_a_gpu_short_chunks_attend_together(
    family: str, tiny_models: Callable[..., Path]
) -> None:
    """In slots with a gap between them, of different lengths, one of them a long prompt."""
    folder = tiny_models(family)
    engine = Engine(EngineOptions(str(folder), "cpu", "float32", slots=6, max_context_length=128))
    expected, other = reference(folder, IDS), reference(folder, OTHER_IDS)
    lengths = {0: 20, 4: 25, 2: 31, 1: 2}
    for slot, length in lengths.items():
        engine.forward([Chunk(slot, 0, IDS[:length])])
    widths = {0: 1, 4: 3, 2: 2, 1: 1}
    chunks = [Chunk(s, lengths[s], IDS[lengths[s] :][: widths[s]], widths[s]) for s in lengths]
    *steps, prompt = engine.forward([*chunks, Chunk(5, 0, OTHER_IDS[:40], 40)])
    tolerance = {"atol": 1e-3 * float(expected.std()), "rtol": 1e-4}
    for chunk, logits in zip(chunks, steps, strict=True):
        torch.testing.assert_close(logits, expected[chunk.start : chunk.end], **tolerance)
    torch.testing.assert_close(prompt, other[:40], **tolerance)


def test_chunks_share_where_few_places_are_wasted() -> None:
    steps = [Chunk(slot, 100, [1]) for slot in (0, 3, 5)]
    assert batch_of(steps) == [0, 1, 2]
    assert batch_of([*steps, Chunk(1, 2000, [1])]) == [0, 1, 2]  # much longer than they are
    assert batch_of([*steps, Chunk(1, 0, [1] * 40)]) == [0, 1, 2]  # a prompt
    assert batch_of([Chunk(0, 100, [1]), Chunk(15, 100, [1])]) == []  # far apart
    assert batch_of(steps[:1]) == []


@pytest.mark.parametrize("dtype", ["float32", "int8", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_compiled_layers_compute_what_they_do_in_python(
    family: str, dtype: str, tiny_models: Callable[..., Path]
) -> None:
    folder = tiny_models(family)
    compiled, plain = engine_of(folder, dtype), engine_of(folder, dtype)
    assert isinstance(compiled.network._run, torch.jit.ScriptModule)
    plain.network._run = Layers(plain.network.layers)
    for chunks in (
        [Chunk(1, 0, IDS[:9], 9)],
        [Chunk(1, 9, IDS[9:10], 1)],
        [Chunk(1, 5, IDS[:7], 7)],
        [Chunk(1, 12, IDS[:2], 2), Chunk(0, 0, IDS[:30], 1), Chunk(2, 0, IDS[:3], 3)],
    ):
        logits, expected = compiled.forward(chunks), plain.forward(chunks)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_draft_whose_products_have_any_rows_is_compiled_too(
    tiny_models: Callable[..., Path],
) -> None:
    folder = str(tiny_models("llama"))
    engine = Engine(EngineOptions(folder, "cpu", "float32", slots=1, batch_invariant=False))
    assert isinstance(engine.network._run, torch.jit.ScriptModule)


def test_layers_that_cannot_be_compiled_run_in_python(
    tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("not in this torch")

    monkeypatch.setattr("torch.jit.script", fail)
    engine = engine_of(tiny_models("llama"))
    assert isinstance(engine.network._run, Layers)
    [logits] = engine.forward([Chunk(0, 0, IDS, len(IDS))])
    torch.testing.assert_close(logits, reference(tiny_models("llama"), IDS), rtol=1e-4, atol=1e-4)
