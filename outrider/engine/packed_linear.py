"""Linear layers with weights laid out in advance for short passes on CPU.

A product of a few rows with a large weight costs the reading of the weight, if
the weight lies as the kernel wants it. `torch.nn.Linear` rearranges it at each
call, so that 2 to 16 rows cost about twice of what one row does, and it is these
that verification is made of. Two layouts avoid that (`benchmarks/passes.py`):

- FBGEMM's for weights in float16, which it multiplies in float32. Half the bytes, half
  the time. Most models are published in half precision, so that nothing is lost.
- oneDNN's for all else; torch.compile uses the same operators when it freezes a model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from outrider.engine.batch_invariance import ANY_SHAPES, Shapes

# The builds of torch that carry FBGEMM, all of them for x86.
FBGEMM_ENGINES = ("x86", "fbgemm", "onednn")

# The number of rows that the layout is chosen for; others work, too.
_TYPICAL_ROWS = 8


def linear_weight(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight, [out_features, in_features], and bias of a linear layer, GPT-2's included."""
    weight = linear.get_parameter("weight").detach()
    bias = None if linear.bias is None else linear.get_parameter("bias").detach()
    return weight.t().contiguous() if isinstance(linear, Conv1D) else weight.contiguous(), bias


class Float16Linear(nn.Module):
    """`input @ weight.T + bias` in float32; float16 `weight` [out_features, in_features]."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            output: Tensor = torch.ops.quantized.linear_dynamic_fp16(input, self.packed)
        else:
            if input.numel() == 0:
                return input.new_empty(*input.shape[:-1], self.out_features)
            # The overload itself: looking for it takes as long as some of these products.
            output = torch.ops.quantized.linear_dynamic_fp16.default(input, self.packed)
        return output


class PackedLinear(nn.Module):
    """`input @ weight.T + bias`, with `weight` [out_features, in_features] packed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, shapes: Shapes = ANY_SHAPES) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)
        self.fewest_rows, self.most_rows = shapes.rows_at_once(weight.dtype)

    def forward(self, input: Tensor) -> Tensor:
        rows = input.reshape(-1, self.in_features)
        if rows.shape[0] == 0:
            output = rows.new_empty(0, self.out_features)
        elif rows.shape[0] <= self.most_rows:
            output = self._multiply(rows)
        else:
            output = torch.cat([self._multiply(some) for some in rows.split(self.most_rows)])
        return output if input.dim() == 2 else output.unflatten(0, input.shape[:-1])

    def _multiply(self, rows: Tensor) -> Tensor:
        alone = rows.shape[0] < self.fewest_rows
        if alone:
            rows = torch.cat((rows, rows))
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            output: Tensor = torch.ops.mkldnn._linear_pointwise(
                rows, self.packed, self.bias, "none", [], ""
            )
        else:
            output = torch.ops.mkldnn._linear_pointwise.default(
                rows, self.packed, self.bias, "none", [], ""
            )
        return output[:1] if alone else output


def pack_linears(module: nn.Module, shapes: Shapes = ANY_SHAPES) -> None:
    """Replaces every linear layer below `module` where this torch and CPU can pack it."""
    if _can_pack(next(module.parameters())):
        replace_linears(module, partial(_packed, shapes))


def replace_linears(module: nn.Module, make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
    """Replaces every linear layer below `module` by what is made of its weight and bias."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in (nn.Linear, Conv1D):
                setattr(parent, name, make(*linear_weight(child)))


def fbgemm_is_available() -> bool:
    """Whether this torch has FBGEMM's kernels for this CPU."""
    return torch.backends.quantized.engine in FBGEMM_ENGINES


def fits_float16(weight: Tensor) -> bool:
    """Whether float16 changes [out_features, in_features] by less than float32 sums would.

    True of all that was published in float16, and of what was in bfloat16 as long as its
    small weights, which float16 rounds, are small beside the largest of their row.
    """
    rounding = (weight.half().to(weight.dtype) - weight).abs().amax(dim=1)
    # What rounding contributes to a sum of that many products, each of which is rounded.
    of_sums = torch.finfo(torch.float32).eps * weight.shape[1] ** 0.5
    return bool((rounding <= of_sums * weight.abs().amax(dim=1)).all())


def _packed(shapes: Shapes, weight: Tensor, bias: Tensor | None) -> nn.Module:
    if weight.dtype == torch.float32 and fbgemm_is_available() and fits_float16(weight):
        return Float16Linear(weight, bias)
    return PackedLinear(weight, bias, shapes)


def _can_pack(parameter: Tensor) -> bool:
    if parameter.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if parameter.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return parameter.dtype == torch.float32
