"""An activation's bits do not depend on how many rows and threads there are."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from outrider.engine.cpu.activations import OneThread, silu_by_rows, use_one_thread
from outrider.engine.shapes import num_threads, same_bits

WIDTH = 1536
ROWS = torch.randn(256, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_rows_keep_their_bits(name: str, count: int) -> None:
    activation = OneThread(ACT2FN[name])
    with num_threads(count):
        for num_rows in (2, 22, 100, 256):
            together = activation(ROWS[None, :num_rows])[0]
            alone = torch.cat([activation(row) for row in ROWS[:num_rows].split(1)])
            assert same_bits(together, alone), num_rows


@pytest.mark.parametrize("num_rows", [1, 21, 22, 256])
def test_silu_is_silu(num_rows: int) -> None:
    rows = ROWS[:num_rows]
    expected = nn.functional.silu(rows)
    torch.testing.assert_close(silu_by_rows(rows), expected)
    with warnings.catch_warnings(action="ignore"):
        scripted = torch.jit.script(silu_by_rows)
    torch.testing.assert_close(scripted(rows), expected)


def test_activations_of_a_model_are_replaced_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(ACT2FN["gelu_new"], nn.SiLU()))
    use_one_thread(model)
    use_one_thread(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(OneThread) == 2
    torch.testing.assert_close(
        model(torch.ones(3, 4)), nn.SiLU()(ACT2FN["gelu_new"](model[0](torch.ones(3, 4))))
    )
