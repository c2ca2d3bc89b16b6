"""Finds the kernel shapes that give the same bits on this CPU.

The results of each kernel are compared with each other: of each matrix product of the model, by
shape, precision and layout, and of attention, by queries and keys, for every number of threads that
may be used. Where rounding would hide the order of additions, sums are compared that consist of
rounding errors only.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from outrider.engine.attention.forward_pass import ForwardPass
from outrider.engine.cpu.activations import use_one_thread
from outrider.engine.cpu.int4_linear import GROUP
from outrider.engine.cpu.packed_linear import RowLinear, row_linears
from outrider.engine.shapes import (
    ANY_SHAPES,
    KEY_BLOCK,
    KEY_STEP,
    AttentionShapes,
    FoundRows,
    Probe,
    find_rows,
    num_threads,
    same_bits,
)
from outrider.protocol.messages import BatchInvariance

log = logging.getLogger(__name__)

# Numbers of rows of a product that are compared; numbers between two of them are padded.
_GRID = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 128, 256)
# The same for layers for which that would be too much arithmetic. Up to 32 are always compared.
_COARSE_GRID = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64, 128)
_NEEDED_ROWS = 32
# Arithmetic for a layer and a number of threads: about 0.1 s of two cores.
_MOST_FLOPS = 6e9

# A stand-in for a layer of up to this many weights is made at once; more show enough rounding.
_LARGEST_STAND_IN = 1 << 26

# Rows of queries. torch's attention takes 32 at a time.
_QUERY_GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
# Numbers of tokens that attend together: steps, verifications, and prompts.
_TYPICAL_QUERIES = (1, 3, 5, 9, 40)

_NUM_FINE_KEYS = (KEY_BLOCK, 384, 256, 128, KEY_STEP, 0)
# Numbers of visible keys: at the ends of steps and blocks, where a query alone sees fewer keys
# than one in a larger block, and between them.
_VISIBLE_KEYS = (
    *(1, 66, *range(KEY_STEP, KEY_BLOCK + 1, KEY_STEP), 514, 640, 770, 896, 1000, 1024),
    *(4000, 4032),
)


class AttentionKind(NamedTuple):
    """Query heads per key-value head, key-value heads, and head size of some layers."""

    groups: int
    num_kv_heads: int
    head_dim: int


def attention_kinds(forward_pass: ForwardPass) -> list[AttentionKind]:
    """The kinds of attention among a pass's layers."""
    assert forward_pass.blocks is not None  # passes on a CPU have them
    return [
        AttentionKind(groups, *heads)
        for groups in sorted(forward_pass.blocks.groups)
        for heads in sorted(forward_pass.cache.head_shapes)
    ]


@dataclass(frozen=True, slots=True)
class FoundAttention:
    """The shapes for attention, and whether bits are the same for every number of threads."""

    shapes: AttentionShapes
    across_threads: bool


# Findings of this process, by kind of layer and numbers of threads.
_layers: dict[tuple[object, ...], FoundRows | None] = {}


def calibrate(
    network: nn.Module,
    kinds: Sequence[AttentionKind],
    dtype: torch.dtype,
    thread_counts: Sequence[int],
    max_length: int,
) -> tuple[AttentionShapes, BatchInvariance]:
    """Sets the numbers of rows for all products and activations of `network`, and returns the
    shapes for attention, and whether the network is batch-invariant with them.

    If there are no such numbers for some kernel, `network` is unchanged. For a model with experts
    they are set for all other layers, and the network does not count as batch-invariant.

    Args:
        kinds: the kinds of attention among its layers.
        thread_counts: the numbers of threads that may be used.
        max_length: the largest number of keys.
    """
    began = time.perf_counter()
    chosen = []
    attention = find_attention(tuple(kinds), dtype, tuple(thread_counts), max_length)
    across_threads = attention is not None and attention.across_threads
    for layer in row_linears(network) if attention else ():
        # Layers of one kind are computed by the same kernels.
        kind = (type(layer), layer.out_features, layer.in_features, layer.dtype, layer.has_bias)
        key = (*kind, *thread_counts)
        if key not in _layers:
            _layers[key] = find_layer(layer, thread_counts)
        if (found := _layers[key]) is None:
            attention = None
            break
        chosen.append((layer, found.rows))
        across_threads = across_threads and found.across_threads
    log.info("kernels were compared in %.1f s", time.perf_counter() - began)
    if attention is None:
        return ANY_SHAPES, BatchInvariance(holds=False)
    use_one_thread(network)
    for layer, rows in chosen:
        layer.use(rows)
    holds = not has_experts(network)
    return attention.shapes, BatchInvariance(holds, across_threads=holds and across_threads)


def has_experts(network: nn.Module) -> bool:
    """Whether a packed network has products that are not linear layers: experts and routers.

    The number of an expert's tokens depends on all tokens of the pass, so that its products may
    have any number of rows.
    """
    return any(
        parameter.dim() > 1
        for module in network.modules()
        if not isinstance(module, nn.Embedding) and "Norm" not in type(module).__name__
        for parameter in module.parameters(recurse=False)
    )


def find_layer(layer: RowLinear, thread_counts: Sequence[int]) -> FoundRows | None:
    """The numbers of rows for a layer's products; None: no numbers give the same bits."""
    num_weights = layer.out_features * layer.in_features
    grid = _grid_within(_MOST_FLOPS / (2 * num_weights))
    generator = torch.Generator().manual_seed(0)
    rows = _rough((grid[-1], layer.in_features), generator)
    if layer.dtype != torch.float32 and num_weights <= _LARGEST_STAND_IN:
        layer, rows = _stand_in(layer, generator), _doubled(rows)
    return find_rows([Probe(layer.multiply, rows.to(layer.dtype))], grid, thread_counts)


def _grid_within(budget: float) -> Sequence[int]:
    """The numbers to compare within `budget` rows altogether, necessary ones always included."""
    if sum(_GRID) <= budget:
        return _GRID
    return [
        size
        for i, size in enumerate(_COARSE_GRID)
        if size <= _NEEDED_ROWS or sum(_COARSE_GRID[: i + 1]) <= budget
    ]


def _stand_in(layer: RowLinear, generator: torch.Generator) -> RowLinear:
    """A layer of the same kind whose products with doubled rows are all rounding error."""
    half = _sixteenths((min(layer.out_features, 64), layer.in_features // 2), generator)
    some = torch.cat((half, -half, half.new_zeros(len(half), layer.in_features % 2)), dim=1)
    weight = some.repeat(-(-layer.out_features // len(some)), 1)[: layer.out_features]
    bias = torch.zeros(layer.out_features, dtype=layer.dtype) if layer.has_bias else None
    return type(layer)(weight.to(layer.dtype).contiguous(), bias)


def _sixteenths(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Weights of many magnitudes that layers in int4, too, hold exactly, and their negatives."""
    num_rows, num_weights = size
    steps = torch.randint(16, size, generator=generator)
    steps[:, ::GROUP], steps[:, 1::GROUP] = 0, 15  # the ends of each group's range
    exponents = torch.randint(-6, 7, (num_rows, num_weights // GROUP + 1), generator=generator)
    return (steps - 7.5) * 2.0 ** exponents.repeat_interleave(GROUP, 1)[:, :num_weights]


def _rough(size: Sequence[int], generator: torch.Generator, most: int = 6) -> Tensor:
    """Random numbers of many magnitudes, whose sums are rounded even in half precision."""
    exponents = torch.randint(-most, most + 1, tuple(size), generator=generator)
    return torch.randn(tuple(size), generator=generator) * 2.0**exponents


def _doubled(rows: Tensor) -> Tensor:
    """Rows whose second half repeats the first, [num_rows, in_features]."""
    half = rows.shape[-1] // 2
    return torch.cat((rows[..., :half], rows[..., :half], rows[..., 2 * half :]), dim=-1)


@cache
def find_attention(
    kinds: tuple[AttentionKind, ...],
    dtype: torch.dtype,
    thread_counts: tuple[int, ...],
    max_length: int,
) -> FoundAttention | None:
    """The shapes for attention of all these kinds; None: no shapes give the same bits."""
    groups = [kind.groups for kind in kinds]
    most = max(_QUERY_GRID[-1], *groups)
    grid = {size for each in groups for size in range(each, most + 1, each)}.union(_QUERY_GRID)
    typical = [each * queries for each in groups for queries in _TYPICAL_QUERIES]
    attentions = [
        _Attention(kind, dtype, most, is_flat) for kind in kinds for is_flat in (False, True)
    ]
    probes = [
        Probe(partial(attention.first_keys, length), attention.queries)
        for attention in attentions
        for length in range(KEY_STEP, KEY_BLOCK + 1, KEY_STEP)
    ]
    found = find_rows(probes, sorted(grid), thread_counts, max(groups), typical)
    if found is None:
        return None
    for num_fine_keys in _NUM_FINE_KEYS:
        shapes = AttentionShapes(found.rows, num_fine_keys)
        outputs = []
        for count in thread_counts:
            with num_threads(count):
                outputs.append([each.by_keys(shapes, max_length) for each in attentions])
        if all(each is not None for by_attention in outputs for each in by_attention):
            agree = all(
                one is not None and other is not None and same_bits(one, other)
                for others in outputs[1:]
                for one, other in zip(outputs[0], others, strict=True)
            )
            return FoundAttention(shapes, found.across_threads and agree)
    return None


class _Attention:
    """Attention whose output shows the order in which it was added up.

    Either its scores are all rounding error, or they are equal (`is_flat`) and values cancel out.
    """

    def __init__(
        self, kind: AttentionKind, dtype: torch.dtype, num_rows: int, is_flat: bool
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        _, num_heads, size = kind
        longest = -(-(_VISIBLE_KEYS[-1] + num_rows) // KEY_BLOCK) * KEY_BLOCK
        queries = _doubled(_rough((num_rows, num_heads, size), generator, 3))
        keys = _rough((1, num_heads, longest, size), generator, 3)
        values = _rough((1, num_heads, longest, size), generator)
        keys[..., size // 2 : size // 2 * 2] = -keys[..., : size // 2]
        # So large that the rounding error of a score changes its weight.
        self.queries = (0 * queries if is_flat else 1000 * queries).to(dtype)
        self._keys = (1000 * keys).to(dtype)
        self._values = values.to(dtype)
        self._is_flat = is_flat

    def first_keys(self, length: int, queries: Tensor) -> Tensor:
        """Attention of [num_rows, num_heads, head_dim] to `length` keys, the last 32 masked."""
        return self._attend(queries, length, length - KEY_STEP // 2)

    def by_keys(self, shapes: AttentionShapes, max_length: int) -> Tensor | None:
        """The output of queries that see more and more keys; None if it depends on the shape."""
        sizes = shapes.rows.sizes
        outputs = []
        for num_visible in _VISIBLE_KEYS:
            if num_visible > max_length:
                break
            # A query alone, and the first of as many as attend together.
            few, many = (
                self._attend(self.queries[:size], shapes.attended_length(end), num_visible)
                for size, end in ((sizes[0], num_visible), (sizes[-1], num_visible + sizes[-1] - 1))
            )
            if not same_bits(few, many[: len(few)]):
                return None
            outputs.append(few)
        return torch.stack(outputs)

    def _attend(self, queries: Tensor, length: int, num_visible: int) -> Tensor:
        keys, values = self._keys[:, :, :length], self._values[:, :, :length]
        if self._is_flat:
            half = num_visible // 2
            values = values.clone()
            values[:, :, half : 2 * half] = -values[:, :, :half]
        mask = queries.new_zeros(len(queries), length)
        mask[:, num_visible:] = float("-inf")
        output = scaled_dot_product_attention(
            queries.transpose(0, 1)[None], keys, values, attn_mask=mask
        )
        return output[0].transpose(0, 1)
