"""Whether recordings compute what passes do that are not recorded; looked at when a model loads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outrider.engine.chunk import Chunk
from outrider.engine.recorded_sampling import Choosing
from outrider.engine.static_choices import StaticChoices
from outrider.engine.static_passes import StaticPasses
from outrider.messages import GREEDY, SamplingParams
from outrider.noise import gumbel_noise
from outrider.sampling import filter_logits

# Enough for attention over several parts of what a slot holds, if slots are as long.
_LONG = 1200
_SAMPLED = SamplingParams(temperature=1.0, seed=1)
_FILTERED = SamplingParams(temperature=1.0, top_k=4, top_p=0.95, min_p=1e-4, seed=2)
_NUM_STEPS = 3

Run = Callable[[Sequence[Chunk]], list[Tensor]]
"""A pass that is not recorded: each chunk's logits."""


def difference(actual: Tensor, expected: Tensor) -> float:
    """How much logits differ, on average, beside how much they vary."""
    expected = expected.float()
    return float((actual.float() - expected).abs().mean() / expected.std())


def gives_the_same(static: StaticPasses, run: Run, tolerance: float) -> bool:
    """Whether logits are the same: of two sessions, and of one behind many tokens.

    Args:
        tolerance: of a `difference`.
    """
    slots = range(min(2, static.cache.num_slots))
    first, second = ([Chunk(slot, start, [1, 2, 3], 2) for slot in slots] for start in (0, 3))
    if not _give_the_same(static, run, [first, second], tolerance):
        return False
    if static.cache.max_length < _LONG + 32:
        return True
    run([Chunk(0, 0, [0] * _LONG)])
    one, many = Chunk(0, _LONG, [1], 1), Chunk(0, _LONG + 1, [2] * 16, 16)
    return _give_the_same(static, run, [[one], [many]], tolerance)


def _give_the_same(
    static: StaticPasses, run: Run, passes: Sequence[Sequence[Chunk]], tolerance: float
) -> bool:
    found = [static.forward(chunks) for chunks in passes]
    expected = [run(chunks) for chunks in passes]
    return all(
        one is not None and difference(torch.cat(one), torch.cat(other)) < tolerance
        for one, other in zip(found, expected, strict=True)
    )


def chooses_the_same(
    choices: StaticChoices, run: Run, token_ids: Tensor, tolerance: float, num_slots: int
) -> bool:
    """Whether what is chosen has the best score by such logits, or as good as that.

    Sessions that choose differently share the passes: a verification, then a draft of
    several steps.
    """
    params = [GREEDY, _SAMPLED, _FILTERED][:num_slots]
    choosings = [Choosing(each, len(token_ids)) for each in params]
    verified = [Chunk(slot, 0, [1, 2, 3], 2) for slot in range(len(params))]
    drafted = [Chunk(slot, 3, [4], 1) for slot in range(len(params))]
    for chunks, num_steps in ((verified, 1), (drafted, _NUM_STEPS)):
        chosen = choices.choose(chunks, choosings, num_steps)
        num_chosen = max(num_steps, chunks[0].num_logits)
        if chosen is None or len(chosen[0]) < num_chosen:
            return False
        for place, (chunk, each) in enumerate(zip(chunks, params, strict=True)):
            tokens = [ranks[0].token_id for ranks in chosen[place]]
            if num_steps > 1:  # what was chosen was read
                chunk = Chunk(chunk.slot, chunk.start, [*chunk.token_ids, *tokens[:-1]], num_steps)
            [logits] = run([chunk])
            index = chunk.end - chunk.num_logits + 1
            for row, token_id in enumerate(tokens):
                if not _lack(logits[row], token_ids, each, index + row, token_id) <= tolerance:
                    return False
    return True


def _lack(
    logits: Tensor, token_ids: Tensor, params: SamplingParams, index: int, token_id: int
) -> float:
    """What a token's score lacks to the best one, beside how much logits vary.

    Infinite if a filter excludes it by far: tokens at the border may be on either side.
    """
    raw = logits[None].double()
    if not (is_token := token_ids == token_id).any():
        return math.inf
    column = int(is_token.nonzero()[0, 0])
    if params.greedy:
        return float((raw.max() - raw[0, column]) / raw.std())
    scaled = raw / params.temperature
    noise = gumbel_noise(params.seed, index, token_ids)
    wider = dataclasses.replace(params, top_k=2 * params.top_k, top_p=(1 + params.top_p) / 2)
    if not filter_logits(scaled, wider)[0, column].isfinite():
        return math.inf
    best = (filter_logits(scaled, params)[0] + noise).max()
    return float((best - scaled[0, column] - noise[column]) / raw.std())
