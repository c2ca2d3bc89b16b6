"""The Triton kernel for everything between the products of a short pass.

torch needs a dozen kernels per layer: rotate the heads, write keys and values, gather the slots,
mask, attend. Each takes longer to launch than to run. Here it is one kernel, which reads only the
part of a slot that its sequence occupies: flash attention (arXiv 2205.14135), for long contexts in
parts that are combined afterwards (flash-decoding).

Imported if there is a GPU, and by tests, some of which use Triton's interpreter.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from outrider.engine.attention.rope import Rotation
from outrider.engine.cuda.ranking_kernel import rank

__all__ = ["attend", "rank"]

# Limits of a program's registers: queries of 128 numbers, by the bytes of one; keys at a time, and
# their bytes. Matrix units take at least 16.
_MOST_QUERIES = {2: 64, 4: 16}
_MOST_KEYS = 64
_KEY_BYTES = 1 << 14
_FEWEST = 16
# The number of programs that keep a large GPU busy, and the fewest keys worth a program.
_PROGRAMS = 256
_KEYS_OF_A_PART = 512


@triton.jit
def _rotated(heads, dims, has_dim, is_row, cos, sin, SIZE: tl.constexpr):
    """Rows of heads, in float32; `heads`, `cos` and `sin` point to the first dimension of each."""
    mask = is_row[:, None] & has_dim[None, :]
    own = tl.load(heads[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    if SIZE == 0:
        return own
    half: tl.constexpr = SIZE // 2
    others = tl.where(dims < half, dims + half, tl.where(dims < SIZE, dims - half, dims))
    other = tl.load(heads[:, None] + others[None, :], mask=mask, other=0.0).to(tl.float32)
    rotated_by = tl.load(cos[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    and_by = tl.load(sin[:, None] + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    return own * rotated_by + other * and_by


@triton.jit
def _read(states, scores, is_visible, value, best, total):
    """Adds keys to a softmax under way: weighted values, largest score, sum."""
    scores = tl.where(is_visible, scores, -1.0e30)
    now_best = tl.maximum(best, tl.max(scores, axis=1))
    weights = tl.where(is_visible, tl.exp(scores - now_best[:, None]), 0.0)
    shrunk = tl.exp(best - now_best)
    added = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    total = total * shrunk + tl.sum(weights, axis=1)
    return states * shrunk[:, None] + added, now_best, total


@triton.jit
def _attend_kernel(
    query, key, value, keys, values, output, bests, totals, slots, positions, cos, sin, scale,
    query_token, query_head, key_token, key_head, value_token, value_head,
    slot_stride, kv_head_stride, output_part, output_token, output_head, num_heads, num_tiles,
    WIDTH: tl.constexpr, GROUPS: tl.constexpr, HEAD_DIM: tl.constexpr, SIZE: tl.constexpr,
    WINDOW: tl.constexpr, IN_PARTS: tl.constexpr, QUERIES: tl.constexpr, NEW: tl.constexpr,
    KEYS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """One chunk's query heads at one key-value head, over one part of its slot."""
    row, part = tl.program_id(0), tl.program_id(2)
    kv_head, tile = tl.program_id(1) // num_tiles, tl.program_id(1) % num_tiles
    slot = tl.load(slots + row)
    start = tl.load(positions + row * WIDTH)
    dims = tl.arange(0, DIMS)
    has_dim = dims < HEAD_DIM
    # The query heads that share a key-value head are rows.
    index = tile * QUERIES + tl.arange(0, QUERIES)
    is_query = index < GROUPS * WIDTH
    own_token = index % WIDTH
    token = row * WIDTH + own_token
    head = kv_head * GROUPS + index // WIDTH
    rotation_row = token * HEAD_DIM
    heads = query + token * query_token + head * query_head
    queries = _rotated(heads, dims, has_dim, is_query, cos + rotation_row, sin + rotation_row, SIZE)
    queries = queries.to(keys.dtype.element_ty)
    states = tl.zeros([QUERIES, DIMS], dtype=tl.float32)
    best = tl.full([QUERIES], -1.0e30, dtype=tl.float32)
    total = tl.zeros([QUERIES], dtype=tl.float32)
    stored = slot * slot_stride + kv_head * kv_head_stride

    begin = start * 0
    if WINDOW > 0:  # nothing before it is visible to the first query
        begin = tl.maximum(begin, start - WINDOW + 1)
    end = start
    if IN_PARTS:
        num_keys = tl.cdiv(tl.cdiv(start - begin, tl.num_programs(2)), KEYS) * KEYS
        begin += part * num_keys
        end = tl.minimum(start, begin + num_keys)
    for place in range(begin, end, KEYS):
        places = place + tl.arange(0, KEYS)
        is_there = places < end
        where = stored + places[:, None] * HEAD_DIM + dims[None, :]
        mask = is_there[:, None] & has_dim[None, :]
        old_keys = tl.load(keys + where, mask=mask, other=0.0)
        old_values = tl.load(values + where, mask=mask, other=0.0)
        scores = tl.dot(queries, tl.trans(old_keys), input_precision="ieee") * scale
        is_visible = is_query[:, None] & is_there[None, :]
        if WINDOW > 0:
            is_visible = is_visible & (places[None, :] > start + own_token[:, None] - WINDOW)
        states, best, total = _read(states, scores, is_visible, old_values, best, total)

    if part == 0:  # and the chunk's own tokens, which no other part reads
        new = tl.arange(0, NEW)
        is_new = new < WIDTH
        new_token = row * WIDTH + new
        new_heads = key + new_token * key_token + kv_head * key_head
        new_rotation_row = new_token * HEAD_DIM
        new_keys = _rotated(
            new_heads, dims, has_dim, is_new, cos + new_rotation_row, sin + new_rotation_row, SIZE
        )
        new_keys = new_keys.to(keys.dtype.element_ty)
        new_mask = is_new[:, None] & has_dim[None, :]
        new_places = value + new_token * value_token + kv_head * value_head
        new_values = tl.load(new_places[:, None] + dims[None, :], mask=new_mask, other=0.0)
        new_where = stored + (start + new)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(keys + new_where, new_keys, mask=new_mask)
        tl.store(values + new_where, new_values, mask=new_mask)
        new_scores = tl.dot(queries, tl.trans(new_keys), input_precision="ieee") * scale
        is_seen = is_query[:, None] & (new[None, :] <= own_token[:, None])
        if WINDOW > 0:
            is_seen = is_seen & (new[None, :] > own_token[:, None] - WINDOW)
        states, best, total = _read(states, new_scores, is_seen, new_values, best, total)

    if not IN_PARTS:
        states = states / tl.where(is_query, total, 1.0)[:, None]
    else:
        of_part = part * tl.num_programs(0) * WIDTH * num_heads + token * num_heads + head
        tl.store(bests + of_part, best, mask=is_query)
        tl.store(totals + of_part, total, mask=is_query)
    where = output + part * output_part + token * output_token + head * output_head
    mask = is_query[:, None] & has_dim[None, :]
    tl.store(where[:, None] + dims[None, :], states.to(output.dtype.element_ty), mask=mask)


@triton.jit
def _join_kernel(
    parts, bests, totals, output, output_token, output_head, num_parts,
    HEAD_DIM: tl.constexpr, PARTS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Joins the parts of one head of one token."""
    token, head = tl.program_id(0), tl.program_id(1)
    num_tokens, num_heads = tl.num_programs(0), tl.num_programs(1)
    part, dims = tl.arange(0, PARTS), tl.arange(0, DIMS)
    is_part, has_dim = part < num_parts, dims < HEAD_DIM
    where = (part * num_tokens + token) * num_heads + head
    best = tl.load(bests + where, mask=is_part, other=-1.0e30)
    total = tl.load(totals + where, mask=is_part, other=0.0)
    weights = tl.where(is_part, tl.exp(best - tl.max(best, axis=0)), 0.0)
    mask = is_part[:, None] & has_dim[None, :]
    states = tl.load(parts + where[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0)
    joined = tl.sum(states * weights[:, None], axis=0) / tl.sum(total * weights, axis=0)
    where = output + token * output_token + head * output_head
    tl.store(where + dims, joined.to(output.dtype.element_ty), mask=has_dim)


def attend(
    query: Tensor,  # [num_rows * width, num_heads, head_dim]
    key: Tensor,  # [num_rows * width, num_kv_heads, head_dim]
    value: Tensor,
    keys: Tensor,  # [num_slots, num_kv_heads, max_length, head_dim]
    values: Tensor,
    slots: Tensor,  # [num_rows]
    positions: Tensor,  # [num_rows * width], ascending by one in each row
    scale: float,
    length: int,
    window: int | None = None,
    rotation: Rotation | None = None,
    output: Tensor | None = None,  # [num_rows * width, num_heads, head_dim]
) -> Tensor:
    """Writes keys and values to the slots, and computes attention to each slot up to each token.

    Args:
        length: an upper bound on the lengths of the sequences.
        rotation: applied to queries and keys first.

    Raises:
        ValueError: values differ in size from keys, or heads are not contiguous.
    """
    if value.shape != key.shape or keys.stride() != values.stride():
        raise ValueError("values must be of the size of keys")
    if any(heads.stride(-1) != 1 for heads in (query, key, value)):
        raise ValueError("the numbers of a head must be side by side")
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, num_rows = key.shape[1], len(slots)
    width, groups = num_tokens // num_rows, num_heads // num_kv_heads
    dims = max(_FEWEST, triton.next_power_of_2(head_dim))
    most_queries = min(64, _MOST_QUERIES[query.element_size()] * 128 // dims)
    num_queries = max(_FEWEST, min(most_queries, triton.next_power_of_2(groups * width)))
    num_tiles = triton.cdiv(groups * width, num_queries)
    num_parts = parts_of(num_rows * num_kv_heads * num_tiles, length)
    if output is None:
        output = query.new_empty(num_tokens, num_heads, head_dim)
    num_keys = max(_FEWEST, min(_MOST_KEYS, _KEY_BYTES // (dims * keys.element_size())))
    in_parts = (num_parts, num_tokens, num_heads)
    statistics = query.new_empty(2, *in_parts, dtype=torch.float32)
    parts = output[None]
    if num_parts > 1:
        parts = query.new_empty(*in_parts, head_dim, dtype=torch.float32)
    cos, sin, size = rotation or (query, query, 0)
    _attend_kernel[(num_rows, num_kv_heads * num_tiles, num_parts)](
        query, key, value, keys, values, parts, *statistics, slots, positions, cos, sin, scale,
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2], *keys.stride()[:2],
        *parts.stride()[:3], num_heads, num_tiles,
        WIDTH=width, GROUPS=groups, HEAD_DIM=head_dim, SIZE=size, WINDOW=window or 0,
        IN_PARTS=num_parts > 1, QUERIES=num_queries, KEYS=num_keys, DIMS=dims,
        NEW=max(_FEWEST, triton.next_power_of_2(width)),
    )  # fmt: skip
    if num_parts > 1:
        _join_kernel[(num_tokens, num_heads)](
            parts, *statistics, output, *output.stride()[:2], num_parts,
            HEAD_DIM=head_dim, PARTS=triton.next_power_of_2(num_parts), DIMS=dims,
        )  # fmt: skip
    return output


def parts_of(num_programs: int, length: int) -> int:
    """Into how many parts `num_programs` should divide slots of up to `length` tokens."""
    return max(1, min(_PROGRAMS // num_programs, length // _KEYS_OF_A_PART))
