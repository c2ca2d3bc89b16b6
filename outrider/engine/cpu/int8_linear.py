"""Linear layers in int8, for drafts on CPUs.

The time of a short pass is the time for reading the weights. In int8 they have a quarter of their
size in float32, and FBGEMM's kernel multiplies them directly (`benchmarks/passes.py`). Weights are
scaled by row. Inputs are scaled in each call, to 7 bits, since 8 would overflow on CPUs without
VNNI.
"""

import warnings

import torch
from torch import Tensor, nn

from outrider.engine.cpu.packed_linear import fbgemm_is_available, replace_linears
from outrider.errors import ConfigurationError


class Int8Linear(nn.Module):
    """`input @ weight.T + bias`, with `weight` [out_features, in_features] rounded to int8."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        scales = row_scales(weight)
        zeros = torch.zeros_like(scales, dtype=torch.long)
        with warnings.catch_warnings():
            # torch will remove tensors of dtype qint8; so far, no other kernel is as fast.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation")
            quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self.bias = bias
        self.packed = torch.ops.quantized.linear_prepack(quantized, None)

    def forward(self, input: Tensor) -> Tensor:
        if input.numel() == self.in_features:
            output = self._multiply(input)
        else:
            # One range serves all rows, so they are scaled to one size first: the first
            # token of a text has inputs that would leave the others no bits.
            size = input.abs().amax(dim=-1, keepdim=True).clamp(min=1e-9)
            output = self._multiply(input / size) * size
        bias = self.bias
        return output if bias is None else output + bias

    def _multiply(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            output: Tensor = torch.ops.quantized.linear_dynamic(input, self.packed, True)
        else:
            output = torch.ops.quantized.linear_dynamic.default(input, self.packed, True)
        return output


def row_scales(weight: Tensor) -> Tensor:
    """The scale of each row of [out_features, in_features]: the value of one int8 step."""
    return (weight.abs().amax(dim=1) / 127).clamp(min=1e-9).double()


def quantize_linears(module: nn.Module) -> None:
    """Replaces every linear layer within `module` by an `Int8Linear`.

    FBGEMM fails for NaN, so NaN in an embedding becomes 0: a draft may be wrong.

    Raises:
        ConfigurationError: this CPU or torch does not support int8 layers.
    """
    if not fbgemm_is_available():
        raise ConfigurationError("int8 needs torch with FBGEMM, on an x86 CPU")
    for each in module.modules():
        if isinstance(each, nn.Embedding) and not each.weight.isfinite().all():
            each.weight = nn.Parameter(each.weight.nan_to_num(0.0, 0.0, 0.0), requires_grad=False)
    replace_linears(module, Int8Linear)
