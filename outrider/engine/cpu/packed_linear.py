"""Linear layers for short passes on CPUs: weights packed in advance, permitted numbers of rows.

A product of a few rows with a large weight takes the time for reading the weight, provided that the
weight has the kernel's layout. `torch.nn.Linear` rearranges it in each call, so that 2 to 16 rows,
typical of verifications, take about twice as long as one row. Two layouts avoid that:

- FBGEMM's for weights in float16, which it multiplies in float32: half the bytes, half the time.
  Most models are published in half precision, so that nothing is lost.
- oneDNN's for all others; torch.compile uses the same operators when it freezes a model.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from outrider.engine.layers import linear_weight
from outrider.engine.shapes import RowSizes

# The builds of torch that carry FBGEMM, all of them for x86.
FBGEMM_ENGINES = ("x86", "fbgemm", "onednn")

# Rows of a weight that are compared with float16 at a time: vocabularies have many.
ROWS_AT_A_TIME = 4096

# The number of rows for which the layout is chosen; others work, too.
_TYPICAL_ROWS = 8


class RowLinear(nn.Module):
    """`input @ weight.T + bias`, computed in calls with permitted numbers of rows.

    Until `use` sets these, one call computes all rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        self.has_bias = bias is not None
        self.most_rows = 0  # any number
        self.filled = [0]  # by number of rows; TorchScript needs an element to know the type

    def use(self, rows: RowSizes) -> None:
        """Sets the permitted numbers of rows. Call it before compilation with TorchScript."""
        self.filled = rows.table()
        self.most_rows = len(self.filled) - 1

    def forward(self, input: Tensor) -> Tensor:  # [..., in_features]
        rows = input.reshape(-1, self.in_features)
        if rows.shape[0] == 0:
            output = rows.new_empty(0, self.out_features)
        elif self.most_rows == 0:
            output = self.multiply(rows)
        elif rows.shape[0] <= self.most_rows:
            output = self._multiply_filled(rows)
        else:
            output = torch.cat([self._multiply_filled(some) for some in rows.split(self.most_rows)])
        return output if input.dim() == 2 else output.unflatten(0, input.shape[:-1])

    def _multiply_filled(self, rows: Tensor) -> Tensor:
        num_rows = rows.shape[0]
        num_missing = self.filled[num_rows] - num_rows
        if num_missing == 0:
            return self.multiply(rows)
        return self.multiply(pad(rows, [0, 0, 0, num_missing]))[:num_rows]

    def multiply(self, rows: Tensor) -> Tensor:
        """One product of [num_rows, in_features], with at least one row."""
        raise NotImplementedError


class PlainLinear(RowLinear):
    """A product with a weight in torch's usual layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.weight = weight
        self.bias = bias

    def multiply(self, rows: Tensor) -> Tensor:
        return linear(rows, self.weight, self.bias)


class Float16Linear(RowLinear):
    """A product in float32, with the weight in float16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def multiply(self, rows: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            output: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows, self.packed)
        else:
            # The overload itself, since looking it up takes as long as some of these products.
            output = torch.ops.quantized.linear_dynamic_fp16.default(rows, self.packed)
        return output


class PackedLinear(RowLinear):
    """A product with the weight in oneDNN's layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self.bias = bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)

    def multiply(self, rows: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            output: Tensor = torch.ops.mkldnn._linear_pointwise(
                rows, self.packed, self.bias, "none", [], ""
            )
        else:
            output = torch.ops.mkldnn._linear_pointwise.default(
                rows, self.packed, self.bias, "none", [], ""
            )
        return output


def pack_linears(module: nn.Module) -> None:
    """Replaces every linear layer within `module` by one of those above."""
    if next(module.parameters()).device.type == "cpu":
        replace_linears(module, pack)


def row_linears(module: nn.Module) -> list[RowLinear]:
    """The layers within `module` whose numbers of rows can be set."""
    return [each for each in module.modules() if isinstance(each, RowLinear)]


def replace_linears(module: nn.Module, make: Callable[[Tensor, Tensor | None], nn.Module]) -> None:
    """Replaces every linear layer within `module` by `make(weight, bias)`."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in (nn.Linear, Conv1D):
                setattr(parent, name, make(*linear_weight(child)))


def fbgemm_is_available() -> bool:
    """Whether this torch has FBGEMM's kernels for this CPU."""
    return torch.backends.quantized.engine in FBGEMM_ENGINES


def fits_float16(weight: Tensor) -> bool:
    """Whether rounding [out_features, in_features] to float16 matters less than float32 rounding.

    True of weights published in float16; also of weights in bfloat16, if those that float16 rounds
    are small compared with the largest weight of their row.
    """
    # The rounding error of a sum of that many products, each of which is rounded.
    of_sums = torch.finfo(torch.float32).eps * weight.shape[1] ** 0.5
    return all(
        bool((rounding_of(rows).amax(dim=1) <= of_sums * rows.abs().amax(dim=1)).all())
        for rows in weight.split(ROWS_AT_A_TIME)
    )


def rounding_of(weight: Tensor) -> Tensor:
    """By how much float16 changes each number."""
    return (weight.half().to(weight.dtype) - weight).abs_()


def pack(weight: Tensor, bias: Tensor | None) -> RowLinear:
    """The layer in the layout that suits its weight, [out_features, in_features]."""
    if not _can_pack(weight):
        return PlainLinear(weight, bias)
    if weight.dtype == torch.float32 and fbgemm_is_available() and fits_float16(weight):
        return Float16Linear(weight, bias)
    return PackedLinear(weight, bias)


def _can_pack(weight: Tensor) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
