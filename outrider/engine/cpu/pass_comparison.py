"""Compares whole passes, as the scheduler may compose them, bit for bit."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outrider.engine.chunk import Chunk
from outrider.engine.shapes import num_threads, same_bits
from outrider.protocol.messages import MAX_NUM_SPECULATIVE_TOKENS, BatchInvariance

if TYPE_CHECKING:
    from outrider.engine.engine import Engine

# Tokens that are computed one by one, and then together.
_NUM_TOKENS = 6
_WIDTHS = (2, 3, _NUM_TOKENS)

# Limits to try if the widest pass gives other bits. With less, a verification would not fit.
_LIMITS = (1024, 512, 256, 128, MAX_NUM_SPECULATIVE_TOKENS + 1)


def compare_passes(engine: "Engine", claim: BatchInvariance, widest: int) -> BatchInvariance:
    """Reduces `claim` to what holds for steps, verifications and passes of up to `widest` tokens.

    Kernels have been compared one by one, but other parts of a model may also depend on the pass.
    """
    num_tokens = min(_NUM_TOKENS, engine.max_context_length - 1)
    if not claim.holds or num_tokens < 2:
        return claim
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(engine.vocab_size, (widest,), generator=generator).tolist()
    limits, outputs = [widest, *(limit for limit in _LIMITS if limit < widest)], []
    for count in engine.thread_counts:
        with num_threads(count):
            steps = _in_passes_of(1, engine, ids[: num_tokens + 1])  # the last behind all others
            for width in _WIDTHS:
                if not same_bits(_in_passes_of(width, engine, ids[:num_tokens]), steps[:-1]):
                    return BatchInvariance(holds=False)
            while limits and not _keeps_bits(limits[0], engine, ids, steps[-1:]):
                del limits[0]
            outputs.append(steps)
    if not limits:
        return BatchInvariance(holds=False)
    agree = all(same_bits(outputs[0], other) for other in outputs[1:])
    max_tokens = limits[0] if limits[0] < widest else 0
    return BatchInvariance(True, max_tokens, claim.across_threads and agree)


def _in_passes_of(width: int, engine: "Engine", ids: Sequence[int]) -> Tensor:
    """Logits [len(ids), vocab_size], by passes of `width` tokens."""
    logits = []
    for start in range(0, len(ids), width):
        tokens = ids[start : start + width]
        logits += engine.forward([Chunk(0, start, tokens, len(tokens))])
    return torch.cat(logits)


def _keeps_bits(width: int, engine: "Engine", ids: Sequence[int], step: Tensor) -> bool:
    """Whether a step has these logits [1, vocab_size] behind tokens of a pass of `width`.

    These tokens are the pass's first rows in one session, and its last ones in another.
    """
    num_tokens = min(_NUM_TOKENS, engine.max_context_length - 1)
    *slots, last = range(engine.cache.num_slots)
    if not slots:
        sessions, chunks = [last], list(_chunks([last], width, engine, ids))
    else:
        # Behind an odd number of rows, in the middle of a vector.
        num_others = (width - num_tokens - 1) // 2 * 2 + 1
        chunks = list(_chunks(slots, num_others, engine, ids))
        chunks.append(Chunk(last, 0, ids[:num_tokens]))
        sessions = [chunks[0].slot, last]
    engine.forward(chunks)
    return all(
        same_bits(engine.forward([Chunk(slot, num_tokens, [ids[num_tokens]], 1)])[0], step)
        for slot in sessions
    )


def _chunks(
    slots: Sequence[int], width: int, engine: "Engine", ids: Sequence[int]
) -> Iterator[Chunk]:
    """`width` tokens in as few of these slots as hold them; fewer if all slots hold less."""
    for slot in slots:
        length = min(width, engine.max_context_length)
        if length > 0:
            yield Chunk(slot, 0, ids[:length])
        width -= length
