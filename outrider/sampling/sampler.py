"""From logits to tokens: greedily, or by sampling with shared noise.

Shared noise: the token at index t of a sequence with seed s is

    argmax over ids of  filtered_logits[id] / temperature + gumbel(s, t, id)

which is an exact sample of the filtered distribution (the Gumbel-max trick), and a function of the
logits and of integers only. Draft and target use the same noise, so a draft with similar logits
usually chooses the token that the target will choose. A draft token is accepted if it equals the
target's choice, and the text is the same with any draft, any number of draft tokens, or none.
(Daliri, Musco, Suresh: "Coupling without Communication and Drafter-Invariant Speculative Decoding",
arXiv 2408.07978.)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from outrider.errors import NotANumber
from outrider.protocol.messages import SamplingParams
from outrider.sampling.noise import gumbel_noise, has_noise_above

# Most nuclei lie within this many tokens; sorting a whole vocabulary takes ten times as long.
_NUCLEUS_WIDTH = 1024

# The number of likeliest tokens that get their noise without a look at its bits.
_NUM_LIKELY = 256

# Finding the position of a maximum takes several times as long as finding its value.
_BLOCK = 128


def choose_tokens(
    logits: Tensor, token_ids: Tensor, params: SamplingParams, first_index: int
) -> list[int]:
    """The tokens at indices first_index, first_index + 1, ... of a sequence.

    The list ends before the first row without a finite maximum.

    Args:
        logits: [num_tokens, num_ids], row i for index first_index + i.
        token_ids: [num_ids], the token of each column. The noise is a function of it, so that a
            model with only a part of the vocabulary uses the same noise.
        first_index: counted from the start of the sequence, prompt included.

    Raises:
        NotANumber: the first row has no finite maximum.
    """
    peaks, columns = _largest(logits)
    num_rows = _num_sound(peaks)
    if params.greedy:
        return token_ids[columns[:num_rows]].tolist()
    chosen = []
    for index, row in enumerate(logits[:num_rows], first_index):
        scores, ids = _contenders(row, token_ids, params, index, 1)
        chosen.append(int(ids[scores.argmax()]))
    return chosen


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's largest logit and its first column; NaN if the row has one."""
    if logits.shape[-1] % _BLOCK:
        peaks, columns = logits.max(dim=-1)
        return peaks, columns
    blocks = logits.unflatten(-1, (-1, _BLOCK))
    peaks, numbers = blocks.amax(dim=-1).max(dim=-1)
    rows = torch.arange(len(logits), device=logits.device)
    return peaks, numbers * _BLOCK + blocks[rows, numbers].argmax(dim=-1)


def _num_sound(peaks: Tensor) -> int:
    """How many rows come before the first whose largest logit [num_rows] is not finite.

    Raises NotANumber if there are none.
    """
    values = peaks.tolist()
    num_sound = next((i for i, value in enumerate(values) if not math.isfinite(value)), len(values))
    if num_sound == 0:
        raise NotANumber()
    return num_sound


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, and the probability that a similar model chooses it."""

    token_id: int
    prob: float


def rank_tokens(
    logits: Tensor, token_ids: Tensor, params: SamplingParams, index: int, width: int
) -> list[Choice]:
    """The choice of `choose_tokens` for `index` by `logits` [1, num_ids], then its runners-up.

    Their probabilities are the softmax of the scores, noise included: under shared noise a similar
    model compares almost the same scores, so it usually chooses one of these tokens, even if they
    are improbable without the noise.

    Raises NotANumber if the largest logit is not finite.
    """
    _num_sound(logits.amax(dim=-1))
    scores = logits[0]
    if not params.greedy:
        scores, token_ids = _contenders(scores, token_ids, params, index, width)
    best = scores.topk(min(width, len(token_ids)))
    # Takes a third of the time of logsumexp, with the same result where it is finite.
    weights = (scores - best.values[0]).exp()
    probs = weights[best.indices] / weights.sum()
    chosen = token_ids[best.indices].tolist()
    return [Choice(*pair) for pair in zip(chosen, probs.tolist(), strict=True)]


def _contenders(
    logits: Tensor, token_ids: Tensor, params: SamplingParams, index: int, width: int
) -> tuple[Tensor, Tensor]:
    """Scores, noise included, of all tokens that can be among the `width` best; and these tokens.

    Noise is the main cost of sampling, and few tokens of a vocabulary need it: besides the
    likeliest ones, those whose noise may exceed their logit gap, which its bits tell.

    Args:
        logits: [num_ids].
    """
    scores = filter_logits(logits[None].double() / params.temperature, params)[0]
    if params.excludes_tokens:
        columns = scores.isfinite().nonzero()[:, 0]
        scores, token_ids = scores[columns], token_ids[columns]
    if len(scores) > _NUM_LIKELY:
        likely = scores.topk(_NUM_LIKELY)
        noisy = likely.values + gumbel_noise(params.seed, index, token_ids[likely.indices])
        gap = noisy.topk(width).values[-1] - likely.values[-1]  # of the best of the others
        can_win = has_noise_above(params.seed, index, token_ids, gap.item())
        can_win[likely.indices] = True
        columns = can_win.nonzero()[:, 0]
        scores, token_ids = scores[columns], token_ids[columns]
    return scores + gumbel_noise(params.seed, index, token_ids), token_ids


def filter_logits(logits: Tensor, params: SamplingParams) -> Tensor:
    """Applies top-k, top-p and min-p, in this order: sets logits of excluded tokens to -inf.

    A token that is as probable as the last one that is kept is kept, too. `logits`
    [num_tokens, vocab_size] must already be divided by the temperature.
    """
    if 0 < params.top_k < logits.shape[-1]:
        smallest = logits.topk(params.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if params.top_p < 1.0:
        logits = logits.masked_fill(logits < _nucleus_threshold(logits, params.top_p), -math.inf)
    if params.min_p > 0.0:
        smallest = logits.amax(dim=-1, keepdim=True) + math.log(params.min_p)
        logits = logits.masked_fill(logits < smallest, -math.inf)
    return logits


def _nucleus_threshold(logits: Tensor, top_p: float) -> Tensor:
    """The smallest logit, [num_tokens, 1], of the likeliest tokens that together reach top_p."""
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    width = min(_NUCLEUS_WIDTH, logits.shape[-1])
    descending = logits.topk(width, dim=-1).values
    if ((descending - log_total).exp().sum(dim=-1) < top_p).any():
        descending = logits.sort(dim=-1, descending=True).values
    probs = (descending - log_total).exp()
    reached_before = probs.cumsum(dim=-1) - probs
    num_kept = (reached_before < top_p).sum(dim=-1, keepdim=True)
    return descending.gather(-1, num_kept - 1)
