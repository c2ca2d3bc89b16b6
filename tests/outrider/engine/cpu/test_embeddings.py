"""Tests of embeddings in float16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from outrider.engine.cpu.embeddings import Float16Embedding, halve_embeddings


def model(weight: torch.Tensor) -> nn.Sequential:
    return nn.Sequential(nn.Embedding.from_pretrained(weight), nn.Linear(4, 2))


def test_what_float16_represents_is_looked_up_with_the_same_bits() -> None:
    weight = torch.randn(9, 4).half().float()
    network, ids = model(weight), torch.tensor([[3, 8, 0]])
    expected = network(ids)
    halve_embeddings(network)
    assert isinstance(network[0], Float16Embedding)
    assert network[0].weight.dtype == torch.float16
    assert torch.equal(network(ids), expected)


@pytest.mark.parametrize("value", [1 + 2**-12, 1e6, 1e-9, float("nan")])
def test_others_stay_as_they_are(value: float) -> None:
    weight = torch.zeros(9, 4)
    weight[5, 2] = value
    network = model(weight)
    halve_embeddings(network)
    assert isinstance(network[0], nn.Embedding)
