"""Triton kernels that choose tokens.

torch needs dozens of kernels, each of which takes longer to launch than to run: a dozen for the
highest scores, another dozen for noise. Here there are two: one processes a part of a row, the
other combines the parts. Tokens with equal scores are ordered by id, as on CPUs.
"""

import triton
import triton.language as tl
from torch import Tensor, float32, float64, int32

from outrider.sampling.recorded_sampling import RowSettings

_PART = 1024  # columns of a program

# Constants of SplitMix64, see `outrider.sampling.noise`; as int64, whose products wrap around.
_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15 - (1 << 64))
_FIRST_FACTOR = tl.constexpr(0xBF58476D1CE4E5B9 - (1 << 64))
_SECOND_FACTOR = tl.constexpr(0x94D049BB133111EB - (1 << 64))


@triton.jit
def _mixed(x):
    """SplitMix64's finalizer. Shifts are arithmetic, so the bits that they bring in are masked."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _FIRST_FACTOR
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _SECOND_FACTOR
    return x ^ ((x >> 31) & ((1 << 33) - 1))


@triton.jit
def _noise(key, index, ids):
    """Standard Gumbel noise, the same as of `noise.gumbel_rows`."""
    place = _mixed(key + (index + 1) * _GOLDEN)
    bits = (_mixed(ids * _GOLDEN + place) >> 11) & ((1 << 53) - 1)
    uniform = (bits.to(tl.float64) + 0.5) * (2.0**-53)
    return -tl.log(-tl.log(uniform))


@triton.jit
def _parts_kernel(
    logits, token_ids, num_ids, keys, indices, temperatures, noises, thresholds,
    bests, columns, totals, row_stride, num_columns, num_parts,
    PART: tl.constexpr, WIDTH: tl.constexpr, IS_GREEDY: tl.constexpr, FILTERS: tl.constexpr,
):  # fmt: skip
    """The best scores of one part of a row, and the sum of exponentials relative to the best."""
    row, part = tl.program_id(0), tl.program_id(1)
    column = part * PART + tl.arange(0, PART)
    is_id = (column < num_columns) & (column < tl.load(num_ids + row))
    scores = tl.load(logits + row * row_stride + column, mask=is_id, other=-float("inf"))
    scores = scores.to(bests.dtype.element_ty)
    if not IS_GREEDY:
        scores = scores / tl.load(temperatures + row)
        if FILTERS:
            scores = tl.where(scores < tl.load(thresholds + row), -float("inf"), scores)
        ids = tl.load(token_ids + column, mask=is_id, other=0)
        noise = _noise(tl.load(keys + row), tl.load(indices + row), ids)
        scores += noise * tl.load(noises + row)
    where = row * num_parts + part
    is_there = scores > -float("inf")
    largest = tl.max(tl.where(is_there, scores, -1.0e30), axis=0)
    tl.store(totals + where, tl.sum(tl.where(is_there, tl.exp(scores - largest), 0.0), axis=0))
    for rank in tl.static_range(WIDTH):
        best, place = tl.max(scores, axis=0, return_indices=True)
        tl.store(bests + where * WIDTH + rank, best)
        tl.store(columns + where * WIDTH + rank, part * PART + place)
        scores = tl.where(column == part * PART + place, -float("inf"), scores)


@triton.jit
def _rows_kernel(
    bests, columns, totals, token_ids, num_ids, ranked, num_parts,
    PARTS: tl.constexpr, CANDIDATES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The best scores of a row, from those of its parts."""
    row = tl.program_id(0)
    part, candidate = tl.arange(0, PARTS), tl.arange(0, CANDIDATES)
    parts, candidates = row * num_parts + part, row * num_parts * WIDTH + candidate
    is_part, is_candidate = part < num_parts, candidate < num_parts * WIDTH
    best_of_part = tl.load(bests + parts * WIDTH, mask=is_part, other=-float("inf"))
    totals_of_parts = tl.load(totals + parts, mask=is_part, other=0.0)
    is_there = best_of_part > -float("inf")
    largest = tl.max(best_of_part, axis=0)
    shares = tl.where(is_there, tl.exp(best_of_part - largest), 0.0)
    total = tl.sum(shares * totals_of_parts, axis=0)
    scores = tl.load(bests + candidates, mask=is_candidate, other=-float("inf"))
    column = tl.load(columns + candidates, mask=is_candidate, other=0)
    last = tl.load(num_ids + row).to(tl.int32) - 1
    for rank in tl.static_range(WIDTH):
        best = tl.max(scores, axis=0)
        # In a row of NaN nothing equals the best score, but the result must be a valid token.
        first = tl.min(tl.where(scores == best, column, last), axis=0)
        first = tl.minimum(first, last)
        scores = tl.where(column == first, -float("inf"), scores)
        where = ranked + (row * WIDTH + rank) * 2
        tl.store(where, tl.load(token_ids + first).to(tl.float64))
        tl.store(where + 1, (tl.exp(best - largest) / total).to(tl.float64))


def rank(
    logits: Tensor,  # [num_rows, num_columns]
    token_ids: Tensor,  # [num_columns], int64
    indices: Tensor,  # [num_rows], int64
    settings: RowSettings,
    is_greedy: bool,
    threshold: Tensor | None,  # [num_rows, 1], float64
    width: int,
) -> Tensor:
    """The result of `recorded_sampling.rank_rows`, [num_rows, width, 2], float64.

    Args:
        threshold: the score, divided by the temperature, below which tokens are excluded.
    """
    num_rows, num_columns = logits.shape
    num_parts = triton.cdiv(num_columns, _PART)
    dtype = float32 if is_greedy else float64
    bests = logits.new_empty(num_rows, num_parts, width, dtype=dtype)
    columns = logits.new_empty(num_rows, num_parts, width, dtype=int32)
    totals = logits.new_empty(num_rows, num_parts, dtype=dtype)
    ranked = logits.new_empty(num_rows, width, 2, dtype=float64)
    _parts_kernel[(num_rows, num_parts)](
        logits, token_ids, settings.num_ids, settings.keys, indices, settings.temperature,
        settings.noise, settings.noise if threshold is None else threshold,
        bests, columns, totals, logits.stride(0), num_columns, num_parts,
        PART=_PART, WIDTH=width, IS_GREEDY=is_greedy, FILTERS=threshold is not None,
    )  # fmt: skip
    _rows_kernel[(num_rows,)](
        bests, columns, totals, token_ids, settings.num_ids, ranked, num_parts,
        PARTS=triton.next_power_of_2(num_parts), WIDTH=width,
        CANDIDATES=triton.next_power_of_2(num_parts * width),
    )  # fmt: skip
    return ranked
