"""Compares recorded passes with unrecorded ones when a model is loaded."""

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.chunk import Chunk
from outrider.engine.cuda.static_choices import StaticChoices
from outrider.engine.cuda.static_pass import kernels_for
from outrider.engine.cuda.static_passes import Record, StaticPasses
from outrider.engine.soundness import difference
from outrider.protocol.messages import GREEDY, SamplingParams
from outrider.sampling.noise import gumbel_noise
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice, filter_logits

log = logging.getLogger(__name__)

# Tokens enough for attention over several parts of a slot, if slots are that long.
_LONG = 1200
_SAMPLED = SamplingParams(temperature=1.0, seed=1)
_FILTERED = SamplingParams(temperature=1.0, top_k=4, top_p=0.95, min_p=1e-4, seed=2)
_NUM_STEPS = 3
_WITH_RUNNERS_UP = 5

Run = Callable[[Sequence[Chunk]], list[Tensor]]
"""Runs an unrecorded pass and returns each chunk's logits."""


def checked_passes(
    network: nn.Module,
    cache: SlotCache,
    device: torch.device,
    record: Record,
    run: Run,
    tolerance: float,
) -> StaticPasses | None:
    """Recorded passes with our kernels or, if these give other logits, with torch's.

    None if both do.
    """
    kernels = kernels_for(device)
    for choice in (kernels, None) if kernels else (None,):
        static = StaticPasses(network, cache, device, record, choice)
        if gives_the_same(static, run, tolerance):
            return static
        attention = "our kernels" if choice else "torch's attention"
        log.warning("no graphs with %s: they give other logits, or none", attention)
    return None


def checked_choices(
    static: StaticPasses, token_ids: Tensor, run: Run, tolerance: float
) -> StaticChoices | None:
    """Recorded choices with our kernels or, if these choose other tokens, with torch's.

    None if both do.
    """
    for choice in (static.kernels, None) if static.kernels else (None,):
        choices = StaticChoices(static, token_ids, choice)
        if chooses_the_same(choices, run, token_ids, tolerance, static.cache.num_slots):
            return choices
        means = "our kernels" if choice else "torch's operators"
        log.warning("no choices on the device by %s: they give other tokens, or none", means)
    return None


def gives_the_same(static: StaticPasses, run: Run, tolerance: float) -> bool:
    """Whether logits are the same: of two sessions, and of one session after a long text.

    Args:
        tolerance: the largest permitted `difference`.
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
    """Whether the choices have the highest scores according to unrecorded logits.

    Compares a verification and a draft of several steps; with and without runners-up; for sessions
    with the same and with different sampling parameters.
    """
    kinds = ([GREEDY], [_SAMPLED], [_FILTERED, GREEDY, _SAMPLED][:num_slots])
    widths = (1, min(_WITH_RUNNERS_UP, len(token_ids)))
    return all(
        _choose_the_same(choices, run, token_ids, tolerance, params, width)
        for params, width in itertools.product(kinds, widths)
    )


def _choose_the_same(
    choices: StaticChoices,
    run: Run,
    token_ids: Tensor,
    tolerance: float,
    params: Sequence[SamplingParams],
    width: int,
) -> bool:
    specs = [SamplingSpec(each, len(token_ids), width) for each in params]
    verified = [Chunk(slot, 0, [1, 2, 3], 2) for slot in range(len(params))]
    drafted = [Chunk(slot, 3, [4], 1) for slot in range(len(params))]
    for chunks, num_steps in ((verified, 1), (drafted, _NUM_STEPS)):
        chosen = choices.choose(chunks, specs, num_steps)
        num_chosen = max(num_steps, chunks[0].num_logits)
        if chosen is None or len(chosen[0]) < num_chosen:
            return False
        for place, (chunk, each) in enumerate(zip(chunks, params, strict=True)):
            if num_steps > 1:  # what was chosen was read
                tokens = [ranks[0].token_id for ranks in chosen[place]]
                chunk = Chunk(chunk.slot, chunk.start, [*chunk.token_ids, *tokens[:-1]], num_steps)
            [logits] = run([chunk])
            index = chunk.end - chunk.num_logits + 1
            for row, ranks in enumerate(chosen[place]):
                has_all = each.excludes_tokens or len(ranks) == width
                gap = _logit_gap(logits[row], token_ids, each, index + row, ranks)
                if not has_all or not gap <= tolerance:
                    return False
    return True


def _logit_gap(
    logits: Tensor,
    token_ids: Tensor,
    params: SamplingParams,
    index: int,
    ranks: Sequence[Choice],
) -> float:
    """The gap between the scores of ranked tokens and the best ones, relative to logits' spread.

    Or the error of a probability, if that is larger. Infinite for an unknown token, or one that a
    filter clearly excludes: tokens at the threshold may be on either side.
    """
    raw = logits[None].double()
    scores = unfiltered = allowed = raw[0]
    if not params.greedy:
        scaled = raw / params.temperature
        noise = gumbel_noise(params.seed, index, token_ids)
        wider = dataclasses.replace(params, top_k=2 * params.top_k, top_p=(1 + params.top_p) / 2)
        allowed = filter_logits(scaled, wider)[0]
        unfiltered, scores = scaled[0] + noise, filter_logits(scaled, params)[0] + noise
    best = scores.sort(descending=True).values
    total, lacks = scores.logsumexp(dim=0), []
    if len({choice.token_id for choice in ranks}) < len(ranks):
        return math.inf
    for rank, choice in enumerate(ranks):
        columns = (token_ids == choice.token_id).nonzero()
        if len(columns) != 1 or not allowed[columns[0, 0]].isfinite():
            return math.inf
        score = unfiltered[columns[0, 0]]
        lacks.append(float((best[rank] - score) / raw.std()))
        if not params.excludes_tokens:
            lacks.append(abs(choice.prob - float((score - total).exp())))
    return math.inf if any(map(math.isnan, lacks)) else max(lacks)
