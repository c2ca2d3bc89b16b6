"""Logits to tokens: greedy, or sampling with shared noise.

Shared noise: the token at index t of a sequence with seed s is

    argmax over ids of  filtered_logits[id] / temperature + gumbel(s, t, id)

which is an exact sample of the filtered distribution (the Gumbel-max trick), and
a function of the logits and of integers alone. Draft and target use the same
noise, so a draft with similar logits mostly picks the very token that the target
will pick; acceptance is equality, and the text is the same with any draft, any
number of draft tokens, or none. (Daliri, Musco, Suresh: "Coupling without
Communication and Drafter-Invariant Speculative Decoding", arXiv 2408.07978.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from outrider.messages import SamplingParams

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

# Most nuclei lie within this many tokens; sorting a whole vocabulary takes ten times as long.
_NUCLEUS_WIDTH = 1024

# So many of the likeliest tokens get their noise without a look at its bits.
_NUM_LIKELY = 256

_NUM_BITS = 53
_LARGEST_EXPONENT = 700.0
_A_HAIR = 1e-6


def choose_tokens(
    logits: Tensor, token_ids: Tensor, params: SamplingParams, first_index: int
) -> list[int]:
    """The tokens at indices first_index, first_index + 1, ... of a sequence.

    Args:
        logits: [num_tokens, num_ids], row i for index first_index + i.
        token_ids: [num_ids], the token of each column. Noise is keyed by it, so a
            model that knows only a part of the vocabulary draws the same noise.
        first_index: counted from the start of the sequence, prompt included.
    """
    if params.greedy:
        return token_ids[logits.argmax(dim=-1)].tolist()
    chosen = []
    for index, row in enumerate(logits, first_index):
        scores, ids = _contenders(row, token_ids, params, index, 1)
        chosen.append(int(ids[scores.argmax()]))
    return chosen


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, and how likely a similar model is to choose it."""

    token_id: int
    prob: float


def rank_tokens(
    logits: Tensor, token_ids: Tensor, params: SamplingParams, index: int, width: int
) -> list[Choice]:
    """What `choose_tokens` chooses at `index` after `logits` [1, num_ids], then its runners-up.

    Their probabilities are the softmax of the scores, noise included: under shared
    noise a similar model compares nearly the same scores, so it mostly takes one of
    these, however unlikely their tokens are without the noise.
    """
    scores = logits[0]
    if not params.greedy:
        scores, token_ids = _contenders(scores, token_ids, params, index, width)
    best = scores.topk(min(width, len(token_ids)))
    probs = (best.values - scores.logsumexp(dim=0)).exp()
    chosen = token_ids[best.indices].tolist()
    return [Choice(*pair) for pair in zip(chosen, probs.tolist(), strict=True)]


def _contenders(
    logits: Tensor, token_ids: Tensor, params: SamplingParams, index: int, width: int
) -> tuple[Tensor, Tensor]:
    """Scores, noise included, of all tokens that can be among the `width` best; and these tokens.

    Noise is what sampling costs, and few tokens of a vocabulary need it: besides the
    likeliest ones, those whose noise makes up for what they lack, which its bits tell.

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
        lack = noisy.topk(width).values[-1] - likely.values[-1]  # of the best of the others
        can_win = _has_noise_above(params.seed, index, token_ids, lack.item())
        can_win[likely.indices] = True
        columns = can_win.nonzero()[:, 0]
        scores, token_ids = scores[columns], token_ids[columns]
    return scores + gumbel_noise(params.seed, index, token_ids), token_ids


def filter_logits(logits: Tensor, params: SamplingParams) -> Tensor:
    """Sets what top-k, top-p and min-p exclude to -inf, in this order, and returns the rest.

    A token as likely as the last one that is kept is kept as well. `logits`
    [num_tokens, vocab_size] are already divided by the temperature.
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


def gumbel_noise(seed: int, index: int, ids: Tensor) -> Tensor:
    """Standard Gumbel noise in float64 for each token id, keyed by (seed, index, id).

    The bits come from SplitMix64 (Steele, Lea, Flood 2014) run as a counter-based
    generator in 64-bit integers, so that every device and host derives the same.
    """
    uniform = (_noise_bits(seed, index, ids).double() + 0.5) * 2.0**-_NUM_BITS  # in (0, 1)
    return -(-uniform.log()).log()


def _has_noise_above(seed: int, index: int, ids: Tensor, least: float) -> Tensor:
    """Whether `gumbel_noise` is at least `least` for each id, or may be: too often by a hair."""
    uniform = math.exp(-math.exp(_A_HAIR - least)) if least > -_LARGEST_EXPONENT else 0.0
    return _noise_bits(seed, index, ids) >= math.floor(uniform * 2.0**_NUM_BITS) - 1


def _noise_bits(seed: int, index: int, ids: Tensor) -> Tensor:
    """What noise is made of: integers of 53 bits."""
    key = _mix_int(_mix_int(seed) + index * _GOLDEN)
    return _shift(_mix_tensor(ids * _signed(_GOLDEN) + _signed(key)), 64 - _NUM_BITS)


def _mix_int(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mix_tensor(x: Tensor) -> Tensor:
    """The same finalizer on int64, whose products wrap around; in place."""
    x ^= _shift(x, 30)
    x *= _signed(0xBF58476D1CE4E5B9)
    x ^= _shift(x, 27)
    x *= _signed(0x94D049BB133111EB)
    x ^= _shift(x, 31)
    return x


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's is arithmetic on int64."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 with the bits of a 64-bit unsigned integer."""
    return x - (1 << 64) if x >= 1 << 63 else x
