from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from outrider.engine.chunk import Chunk
from outrider.engine.cpu.int4_linear import GROUP, Int4Linear, pack_in_int4
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.errors import ConfigurationError
from target_service.verifier import Verifier
from tests.support.models.tiny_models import SUPPORTED_FAMILIES

IDS = list(range(4, 44))


def on_grid(out_features: int, in_features: int) -> Tensor:
    """Weights that are `scale * step + minimum`, as those of files in Q4_1."""
    generator = torch.Generator().manual_seed(2)
    steps = torch.randint(16, (out_features, in_features), generator=generator)
    steps[:, ::GROUP], steps[:, 1::GROUP] = 0, 15
    scales = 2.0 ** torch.randint(-8, -2, (out_features, in_features // GROUP), generator=generator)
    return (steps - 7.5) * scales.repeat_interleave(GROUP, 1)


def test_weights_on_a_grid_of_four_bits_keep_their_values() -> None:
    weight, bias = on_grid(48, 96), torch.randn(48, generator=torch.Generator().manual_seed(3))
    each = torch.eye(96)  # each output is one weight
    output = Int4Linear(weight, bias)(each)
    torch.testing.assert_close(output, (weight.t().bfloat16().float() + bias), atol=0, rtol=0)


def test_other_weights_move_by_at_most_half_a_step() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(4))
    groups = weight.unflatten(1, (-1, GROUP))
    step = (groups.amax(-1) - groups.amin(-1)).repeat_interleave(GROUP, 1) / 15
    moved = (Int4Linear(weight, None)(torch.eye(64)).t() - weight).abs()
    rounding = 2**-7 * weight.abs().amax()  # of scales and outputs, to bfloat16
    assert (moved <= step / 2 + rounding).all()
    assert moved.mean() > 0.1 * step.mean()  # really four bits


def test_constant_groups_are_kept() -> None:
    weight = torch.full((16, 32), 0.75)
    weight[3] = 0
    rows = torch.ones(2, 32)
    torch.testing.assert_close(Int4Linear(weight, None)(rows), linear(rows, weight))


def test_the_head_and_sizes_that_do_not_fit_keep_their_precision() -> None:
    model = nn.ModuleDict(
        {
            "fits": nn.Linear(64, 48),
            "inputs": nn.Linear(48, 64),  # not a multiple of a group
            "outputs": nn.Linear(64, 40),  # not a multiple of the kernel's
            "head": nn.Linear(64, 128),
        }
    )
    pack_in_int4(model, vocab_size=128)
    in_int4 = {name for name, each in model.items() if isinstance(each, Int4Linear)}
    assert in_int4 == {"fits"}


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_logits_stay_near_those_in_float32(family: str, tiny_models: Callable[..., Path]) -> None:
    exact, rounded = (
        Engine(EngineOptions(str(tiny_models(family)), "cpu", dtype, slots=1)).forward(
            [Chunk(0, 0, IDS, len(IDS))]
        )[0]
        for dtype in ("float32", "int4")
    )
    assert float((rounded - exact).abs().mean() / exact.std()) < 0.5
    assert not torch.equal(rounded, exact)


def test_a_target_in_int4_is_accepted(tiny_models: Callable[..., Path]) -> None:
    engine = Engine(EngineOptions(str(tiny_models("llama")), "cpu", "int4"))
    assert any(isinstance(each, Int4Linear) for each in engine.network.modules())
    assert engine.gives_hidden_states  # of a network that was compared before it was rounded
    verifier = Verifier(engine)
    verifier.open_session().close()
    verifier.close()


def test_int4_is_for_cpus(tiny_models: Callable[..., Path]) -> None:
    with pytest.raises(ConfigurationError, match="int4 runs on a CPU only"):
        Engine(EngineOptions(str(tiny_models("llama")), "meta", "int4"))
