from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from outrider.distill.shared.fake_int8 import fake_int8, remove_fake_int8
from outrider.engine.chunk import Chunk
from outrider.engine.cpu import packed_linear
from outrider.engine.cpu.int8_linear import Int8Linear, quantize_linears
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.errors import ConfigurationError
from target_service.verifier import Verifier
from tests.support.models.tiny_models import SUPPORTED_FAMILIES

IDS = list(range(4, 44))


class Block(nn.Module):
    """The layers of an MLP under a head."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(16, 48), nn.Linear(48, 16), nn.Linear(16, 64)

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.head(self.down(self.up(states).relu()))
        return output


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float(((actual - expected).abs().mean() / expected.std()).detach())


@pytest.fixture
def seeded() -> torch.Generator:
    torch.manual_seed(0)
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_logits_stay_near_those_in_float32(family: str, tiny_models: Callable[..., Path]) -> None:
    logits = [
        Engine(EngineOptions(str(tiny_models(family)), "cpu", dtype, slots=1)).forward(
            [Chunk(0, 0, IDS, len(IDS))]
        )[0]
        for dtype in ("float32", "int8")
    ]
    assert 0 < relative_error(logits[1], logits[0]) < 0.1


def test_a_large_row_takes_no_bits_from_the_others(seeded: torch.Generator) -> None:
    linear = nn.Linear(64, 32)
    inputs = torch.randn(4, 64, generator=seeded)
    alone = Int8Linear(linear.weight.detach(), linear.bias.detach())(inputs[1:])
    inputs[0] *= 1000
    together = Int8Linear(linear.weight.detach(), linear.bias.detach())(inputs)[1:]
    assert relative_error(together, linear(inputs)[1:]) < 0.02
    torch.testing.assert_close(together, alone, atol=0.05, rtol=0.05)


def test_training_sees_what_int8_will_round(seeded: torch.Generator) -> None:
    block = Block().requires_grad_(True)
    block.up.requires_grad_(False)
    inputs = torch.randn(64, 16, generator=seeded)
    exact = block(inputs).detach()
    fake_int8(block)
    faked = block(inputs)
    faked.sum().backward()
    gradients = {name for name, p in block.named_parameters() if p.grad is not None}
    assert gradients == {
        "down.bias",
        "down.parametrizations.weight.original",
        "head.bias",
        "head.parametrizations.weight.original",
    }
    remove_fake_int8(block)
    quantize_linears(block)
    real = torch.cat([block(row) for row in inputs.split(1)])
    assert relative_error(faked, real) < 0.5 * relative_error(exact, real)


def test_without_the_kernel_the_error_says_so(
    monkeypatch: pytest.MonkeyPatch, tiny_models: Callable[..., Path]
) -> None:
    monkeypatch.setattr(packed_linear, "FBGEMM_ENGINES", ())
    with pytest.raises(ConfigurationError, match="FBGEMM"):
        Engine(EngineOptions(str(tiny_models("llama")), "cpu", "int8"))
    with pytest.raises(ConfigurationError, match="CPU only"):
        Engine(EngineOptions(str(tiny_models("llama")), "meta", "int8"))


def test_a_target_in_int8_is_refused(tiny_models: Callable[..., Path]) -> None:
    engine = Engine(EngineOptions(str(tiny_models("llama")), "cpu", "int8"))
    with pytest.raises(ConfigurationError, match="draft"):
        Verifier(engine)
