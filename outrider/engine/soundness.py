"""Checks that the results of a pass are finite, and removes NaN and infinity from slots.

A damaged weight or an overflow turns a token's hidden states into NaN, and with them those of every
token that attends to it, even if it is masked: masked keys and values are multiplied like all
others, and 0 * NaN is NaN. So a NaN that remained in a slot would corrupt every later text there.

If all tokens of a chunk have logits, one logit of each token, or the probability of its choice, is
checked; otherwise the last layer's keys and values, since NaN propagates from layer to layer. A
check takes a few microseconds.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.chunk import Capture, Chunk
from outrider.sampling.sampler import Choice

Result = Tensor | list[list[Choice]]
"""The result of a chunk: logits, or the choices after its tokens."""


def difference(actual: Tensor, expected: Tensor) -> float:
    """The mean difference of logits, relative to their standard deviation."""
    expected = expected.float()
    return float((actual.float() - expected).abs().mean() / expected.std())


def same_states(capture: Capture, expected: Sequence[Tensor], tolerance: float) -> bool:
    """Whether captured hidden states equal those of transformers, up to `tolerance`.

    Args:
        expected: by layer, [1, num_tokens, hidden_size].
        tolerance: the largest `difference`.
    """
    assert capture.rows is not None
    parts = capture.rows.chunk(len(capture.layers), dim=-1)
    pairs = zip(parts, (expected[layer][0] for layer in capture.layers), strict=True)
    return all(difference(rows, states) < tolerance for rows, states in pairs)


def check_finite(logits: Tensor, dtype: torch.dtype) -> None:
    """Raises ValueError if some are NaN or infinite."""
    if not logits.isfinite().all():
        raise ValueError(f"its logits are NaN or infinite: damaged weights, or {dtype} overflows")


def clear_unsound(
    cache: SlotCache, chunks: Sequence[Chunk], results: Sequence[Result]
) -> list[bool]:
    """For each chunk of a pass, whether its keys and values are finite. Clears those that are not.

    Args:
        results: the pass's result for each chunk.
    """
    are_sound = [True] * len(chunks)
    in_doubt = [
        i for i, pair in enumerate(zip(chunks, results, strict=True)) if _is_in_doubt(*pair)
    ]
    ranges = [(chunks[i].slot, chunks[i].start, _end(chunks[i], results[i])) for i in in_doubt]
    if not ranges or all(cache.are_finite(ranges)):
        return are_sound
    for i, (slot, start, end) in zip(in_doubt, ranges, strict=True):
        [are_sound[i]] = cache.are_finite([(slot, start, chunks[i].end)])
        cache.clear(slot, chunks[i].end if are_sound[i] else start, end)
    return are_sound


def num_sound_choices(chosen: Sequence[Sequence[Choice]]) -> int:
    """How many choices precede the first one whose probability is not finite."""
    is_sound = [math.isfinite(choices[0].prob) for choices in chosen]
    return is_sound.index(False) if False in is_sound else len(is_sound)


def _is_in_doubt(chunk: Chunk, result: Result) -> bool:
    if len(chunk.token_ids) > chunk.num_logits:
        return True
    if isinstance(result, Tensor):  # if a token's states are NaN, all of its logits are
        return not math.isfinite(result[:, 0].sum(dtype=torch.float32).item())
    return num_sound_choices(result) < len(result)


def _end(chunk: Chunk, result: Result) -> int:
    """The end of the tokens that were read: an engine that chooses also reads its choices."""
    is_run = not isinstance(result, Tensor) and chunk.num_logits == 1
    return chunk.end + (len(result) - 1 if is_run else 0)
