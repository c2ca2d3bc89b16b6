"""The choices of `outrider.sampling.sampler`, computed without data-dependent control flow.

For recorded passes. The choices are the same, except for the order of runners-up with equal scores.
What the sampler saves by looking at values (noise for tokens that cannot win, sorting beyond the
nucleus) is computed here, since on a GPU that is faster than transferring the values.
"""

import math
import struct
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.protocol.messages import SamplingParams
from outrider.sampling.noise import gumbel_rows, key_of


class SamplingSpec(NamedTuple):
    """How to choose tokens from a chunk's logits."""

    params: SamplingParams
    num_ids: int
    """How many of the logits' columns, from the first one, may be chosen."""
    width: int = 1
    """How many choices to return: the chosen token and its runners-up."""


class SamplingWork(NamedTuple):
    """Which parts of sampling at least one of the rows needs."""

    is_greedy: bool
    filters: bool


class RowSettings(NamedTuple):
    """The sampling parameters of rows of logits."""

    num_ids: Tensor  # [num_rows], int64
    keys: Tensor  # [num_rows], int64, of the seeds
    top_k: Tensor  # [num_rows], int64; all columns: no limit
    temperature: Tensor  # [num_rows], float64
    noise: Tensor  # [num_rows], float64: 0 where a row is greedy, else 1
    top_p: Tensor  # [num_rows], float64
    min_p: Tensor  # [num_rows], float64

    @classmethod
    def of(cls, numbers: Tensor) -> "RowSettings":
        """Views of [NUM_SETTINGS, num_rows], whose columns are `settings_of` each row."""
        return cls(*numbers[:_NUM_INTEGERS], *numbers[_NUM_INTEGERS:].view(torch.float64))


NUM_SETTINGS = len(RowSettings._fields)
_NUM_INTEGERS = 3


def work_of(specs: Sequence[SamplingSpec]) -> SamplingWork:
    params = [spec.params for spec in specs if not spec.params.greedy]
    return SamplingWork(not params, any(each.excludes_tokens for each in params))


def settings_of(spec: SamplingSpec, num_columns: int) -> list[int]:
    """A row's `RowSettings` as integers; floats are represented by their bits."""
    params = spec.params
    if params.greedy:
        return [spec.num_ids, 0, num_columns, *map(_bits_of, (1.0, 0.0, 1.0, 0.0))]
    top_k = params.top_k if 0 < params.top_k < num_columns else num_columns
    others = (params.temperature, 1.0, params.top_p, params.min_p)
    return [spec.num_ids, key_of(params.seed), top_k, *map(_bits_of, others)]


def _bits_of(number: float) -> int:
    [bits] = struct.unpack("q", struct.pack("d", number))
    return int(bits)


def rank_rows(
    logits: Tensor,  # [num_rows, num_columns]
    token_ids: Tensor,  # [num_columns]
    indices: Tensor,  # [num_rows]
    settings: RowSettings,
    work: SamplingWork,
    width: int,
    kernels: ModuleType | None = None,
) -> Tensor:
    """The choices for index `indices[i]` of a sequence by row i of the logits, likeliest first.

    Args:
        kernels: the module of Triton kernels that do most of the work; by default torch does.

    Returns:
        [num_rows, width, 2], float64: tokens, and the probability that a similar model chooses
        them.
    """
    if kernels is not None:
        threshold = _threshold(_scores(logits, settings, work), settings) if work.filters else None
        return kernels.rank(logits, token_ids, indices, settings, work.is_greedy, threshold, width)  # type: ignore[no-any-return]
    scores = _scores(logits, settings, work)
    if not work.is_greedy:
        if work.filters:
            scores = scores.masked_fill(scores < _threshold(scores, settings), -math.inf)
        noise = gumbel_rows(settings.keys, indices, token_ids)
        scores = scores + noise * settings.noise[:, None]
    # Of equal maxima `max` takes the first, like the sampler.
    best, columns = scores.max(-1, keepdim=True) if width == 1 else scores.topk(width)
    probs = (best - scores.logsumexp(dim=-1, keepdim=True)).exp()
    return torch.stack((token_ids[columns].double(), probs.double()), dim=-1)


def _scores(logits: Tensor, settings: RowSettings, work: SamplingWork) -> Tensor:
    """Logits divided by the temperature, -inf where not to be chosen; [num_rows, num_columns]."""
    scores = logits.float() if work.is_greedy else logits.double()
    columns = torch.arange(logits.shape[1], device=logits.device)
    scores = scores.masked_fill(columns >= settings.num_ids[:, None], -math.inf)
    return scores if work.is_greedy else scores / settings.temperature[:, None]


def _threshold(scores: Tensor, settings: RowSettings) -> Tensor:
    """The smallest score of each row that top-k, top-p and min-p all keep, [num_rows, 1]."""
    descending = scores.sort(dim=-1, descending=True).values
    least = descending.gather(-1, settings.top_k[:, None] - 1)
    left = descending.masked_fill(descending < least, -math.inf)
    probs = left.softmax(dim=-1)
    reached_before = probs.cumsum(dim=-1) - probs
    top_p = settings.top_p[:, None]
    num_kept = (reached_before < top_p).sum(dim=-1, keepdim=True).clamp(min=1)  # NaN: none
    nucleus = left.gather(-1, num_kept - 1).masked_fill(top_p >= 1.0, -math.inf)
    likely = descending[:, :1] + settings.min_p[:, None].log()
    return torch.maximum(torch.maximum(least, nucleus), likely)
