"""Layers that take over from those removed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from outrider.distill.layers.refit import record, refit
from outrider.distill.layers.student import keep_layers, layer_list
from outrider.engine.loading.weights import load_model
from outrider.errors import UnsupportedModel

TEXTS = [torch.randint(30, 250, (60,), generator=torch.manual_seed(i)).tolist() for i in range(12)]
OTHER = torch.randint(30, 250, (1, 60), generator=torch.manual_seed(99))


def model_of(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = load_model(str(folder), torch.device("cpu"), torch.float32)
    return model


def error_of(model: torch.nn.Module, expected: Tensor) -> float:
    with torch.inference_mode():
        actual = model(OTHER, use_cache=False).logits
    return float((actual - expected)[:, 1:].square().mean())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_the_layer_that_stays_takes_over_from_one_removed(
    family: str, tiny_models: Callable[..., Path]
) -> None:
    target = model_of(tiny_models(family))
    with torch.inference_mode():
        expected = target(OTHER, use_cache=False).logits
    passages = record(target, TEXTS, [0])
    student = copy.deepcopy(target)
    keep_layers(student, [0])
    without = error_of(student, expected)
    refit(student, passages, first=0)
    assert error_of(student, expected) < 0.95 * without


def test_layers_before_the_first_stay_as_they_are(tiny_models: Callable[..., Path]) -> None:
    target = model_of(tiny_models("llama"))
    with torch.inference_mode():
        expected = target(OTHER, use_cache=False).logits
    passages = record(target, TEXTS, [0, 1])
    before = copy.deepcopy(target.state_dict())
    refit(target, passages, first=1)
    for name, weights in target.state_dict().items():
        if ".layers.1." not in name:
            assert torch.equal(weights, before[name]), name
    # Nothing was removed, so what is solved for is what there was.
    assert error_of(target, expected) < 1e-3 * float(expected.var())


@pytest.mark.parametrize("family", ["gemma3", "olmo2"])
def test_layers_that_norm_what_their_mlp_yields_are_left_alone(
    family: str, tiny_models: Callable[..., Path]
) -> None:
    target = model_of(tiny_models(family))
    passages = record(target, TEXTS[:2], [1])
    keep_layers(target, [1])
    before = copy.deepcopy(layer_list(target)[0].state_dict())
    with pytest.raises(UnsupportedModel, match="MLP"):
        refit(target, passages, first=0)
    for name, weights in layer_list(target)[0].state_dict().items():
        assert torch.equal(weights, before[name]), name
