"""Weights are packed in float16 where that loses nothing, else in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from outrider.engine.chunk import Chunk
from outrider.engine.cpu import packed_linear
from outrider.engine.cpu.packed_linear import (
    Float16Linear,
    PackedLinear,
    fbgemm_is_available,
    fits_float16,
    pack_linears,
)
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from tests.support.models.tiny_models import SUPPORTED_FAMILIES

IDS = list(range(4, 44))

needs_fbgemm = pytest.mark.skipif(not fbgemm_is_available(), reason="no FBGEMM for this CPU")


def weights_of_a_model() -> Tensor:
    return 0.02 * torch.randn(64, 576, generator=torch.Generator().manual_seed(0))


def packed(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    parent = nn.Module()
    parent.layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    parent.layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    pack_linears(parent)
    return parent.layer


@pytest.mark.parametrize("published_in", [torch.float16, torch.bfloat16])
def test_what_was_published_in_half_precision_fits(published_in: torch.dtype) -> None:
    assert fits_float16(weights_of_a_model().to(published_in).float())


def test_what_would_be_rounded_or_overflow_does_not_fit() -> None:
    assert not fits_float16(weights_of_a_model())
    half = weights_of_a_model().half().float()
    half[3, 5] = 1e6
    assert not fits_float16(half)
    half[3, 5] = float("nan")
    assert not fits_float16(half)


@needs_fbgemm
def test_the_layout_is_chosen_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, half = weights_of_a_model(), weights_of_a_model().half().float()
    assert type(packed(exact)) is PackedLinear
    assert type(packed(half)) is Float16Linear
    monkeypatch.setattr(packed_linear, "FBGEMM_ENGINES", ())
    assert type(packed(half)) is PackedLinear


@needs_fbgemm
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 40])
def test_products_are_those_in_float32(rows: int) -> None:
    weight = weights_of_a_model().half().float()
    bias = torch.arange(64.0)
    inputs = torch.randn(1, rows, 576, generator=torch.Generator().manual_seed(1))
    expected = nn.functional.linear(inputs, weight, bias)
    torch.testing.assert_close(packed(weight, bias)(inputs), expected, rtol=1e-5, atol=1e-5)


@needs_fbgemm
@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_a_model_in_float16_gives_the_logits_of_float32(
    family: str, tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_models(family), dtype=torch.float16)
    model.save_pretrained(tmp_path)
    engine = Engine(EngineOptions(str(tmp_path), "cpu", "float32", slots=1))
    assert any(type(module) is Float16Linear for module in engine.network.modules())
    [logits] = engine.forward([Chunk(0, 0, IDS, len(IDS))])
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = reference(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
