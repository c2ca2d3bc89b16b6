"""Whether this CPU's kernels are of the kinds that `outrider.engine.batch_invariance` knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention


def kernels_are_known(dtype: torch.dtype) -> bool:
    """Whether kernels add up here as they did where the shapes were found.

    Seen by torch's operators alone: products of 2 to 32 rows, and attention of 6 and 24
    queries to 64 and 512 keys, all but 40 of them masked.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    generator = torch.Generator().manual_seed(0)
    weight, rows, query, key, value = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((300, 640), (32, 640), (1, 2, 24, 64), (1, 2, 512, 64), (1, 2, 512, 64))
    )
    mask = torch.zeros(24, 512, dtype=dtype)
    mask[:, 40:] = float("-inf")
    attended = scaled_dot_product_attention(query, key, value, mask)
    few = scaled_dot_product_attention(
        query[:, :, :6], key[:, :, :64], value[:, :, :64], mask[:6, :64]
    )
    many = multiply(rows, weight)
    same_products = all(torch.equal(multiply(rows[:n], weight), many[:n]) for n in (2, 5, 17))
    return same_products and torch.equal(few, attended[:, :, :6])


def multiply(rows: Tensor, weight: Tensor) -> Tensor:
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return linear(rows, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
    product: Tensor = torch.ops.mkldnn._linear_pointwise.default(rows, packed, None, "none", [], "")
    return product


def needs_known_kernels(dtype: str) -> None:
    if not kernels_are_known(getattr(torch, dtype)):
        pytest.skip(f"kernels for {dtype} of another kind of CPU")
