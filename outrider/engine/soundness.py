"""Whether what a pass has computed are numbers at all.

A damaged weight, or a sum that overflows, makes NaN of a token's states, and of all that attends to
it, even where it is masked: keys and values that are masked are multiplied like others, and
0 * NaN is NaN. So a slot that was left with one would spoil every text after it.

A chunk whose every token has logits is checked by one logit of each token, or by the probability
of what was chosen; others by the last layer's keys and values, since NaN stays NaN from layer to
layer. A check takes some microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.chunk import Chunk
from outrider.sampling.sampler import Choice

Result = Tensor | list[list[Choice]]
"""What comes of a chunk: logits, or what was chosen after tokens."""


def difference(actual: Tensor, expected: Tensor) -> float:
    """How much logits differ, on average, beside how much they vary."""
    expected = expected.float()
    return float((actual.float() - expected).abs().mean() / expected.std())


def check_finite(logits: Tensor, dtype: torch.dtype) -> None:
    """Raises ValueError if some are no numbers."""
    if not logits.isfinite().all():
        raise ValueError(f"its logits are NaN or infinite: damaged weights, or {dtype} overflows")


def clear_unsound(
    cache: SlotCache, chunks: Sequence[Chunk], results: Sequence[Result]
) -> list[bool]:
    """Whether each chunk of a pass has finite keys and values. Those that are not are cleared.

    Args:
        results: what came of the pass.
    """
    are_sound = [True] * len(chunks)
    in_doubt = [
        i for i, pair in enumerate(zip(chunks, results, strict=True)) if _is_in_doubt(*pair)
    ]
    ranges = [(chunks[i].slot, chunks[i].start, _end(chunks[i], results[i])) for i in in_doubt]
    if not ranges or all(cache.are_finite(ranges)):
        return are_sound
    for i, (slot, start, end) in zip(in_doubt, ranges, strict=True):
        own = (slot, start, chunks[i].end)
        [are_sound[i]] = cache.are_finite([own])
        cache.clear(slot, chunks[i].end if are_sound[i] else start, end)
    return are_sound


def num_sound_choices(chosen: Sequence[Sequence[Choice]]) -> int:
    """How many of the tokens in a row were chosen for a probability that is a number."""
    is_sound = [math.isfinite(choices[0].prob) for choices in chosen]
    return is_sound.index(False) if False in is_sound else len(is_sound)


def _is_in_doubt(chunk: Chunk, result: Result) -> bool:
    if len(chunk.token_ids) > chunk.num_logits:
        return True
    if isinstance(result, Tensor):  # all logits of a token whose states are no numbers are none
        return not math.isfinite(result[:, 0].sum(dtype=torch.float32).item())
    return num_sound_choices(result) < len(result)


def _end(chunk: Chunk, result: Result) -> int:
    """Where what was read ends: an engine that chooses goes on to read its choices."""
    is_run = not isinstance(result, Tensor) and chunk.num_logits == 1
    return chunk.end + (len(result) - 1 if is_run else 0)
