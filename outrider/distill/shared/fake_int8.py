"""Training for a draft that will run in int8, with its rounding.

Weights and inputs are rounded as `outrider.engine.cpu.int8_linear` rounds them, and
gradients pass as if they were not (the straight-through estimator, arXiv 1308.3432).
GPT-2's transposed layers are not rounded until they are served.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from outrider.engine.cpu.int8_linear import row_scales

_INPUT_STEPS = 127


class RoundedWeight(nn.Module):
    """Rounds a weight [out_features, in_features] as int8 by row does."""

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            scales = row_scales(weight).to(weight.dtype)[:, None]
            rounding = (weight / scales).round() * scales - weight
        return weight + rounding


def round_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Rounds a linear layer's input to 7 bits, row by row."""
    [values] = inputs
    with torch.no_grad():
        low = values.amin(dim=-1, keepdim=True).clamp(max=0)
        step = (values.amax(dim=-1, keepdim=True).clamp(min=0) - low) / _INPUT_STEPS
        step = step.clamp(min=1e-9)
        lowest = (low / step).round()  # zero is on the grid
        steps = (values / step).round().clamp(lowest, lowest + _INPUT_STEPS)
        rounding = steps * step - values
    return (values + rounding,)


def fake_int8(model: Any) -> None:
    """Lets the linear layers of `model` round as they will in int8."""
    for module in list(model.modules()):
        if type(module) is not nn.Linear:
            continue
        module.register_forward_pre_hook(round_inputs)
        is_trained = module.weight.requires_grad
        parametrize.register_parametrization(module, "weight", RoundedWeight())
        if not is_trained:  # rounding it once suffices
            parametrize.remove_parametrizations(module, "weight")


def remove_fake_int8(model: Any) -> None:
    """Leaves the rounded weights, as plain parameters."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module._forward_pre_hooks.clear()
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
