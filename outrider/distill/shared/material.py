"""Texts and what the target said of them, as batches to learn from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from outrider.distill.shared.teaching import Lesson
from outrider.distill.shared.texts import Array, Texts

_IGNORED = -1
# How much the lengths of texts in a batch may differ, as a share of them.
_SPREAD = 0.1
_HELD_OUT = 0.02


@dataclass(frozen=True)
class Batch:
    """Texts of one step, padded."""

    token_ids: Tensor  # [batch, length]
    attention_mask: Tensor  # [batch, length]
    weights: Tensor  # [batch, length], 1 where what comes next is learned, 0 elsewhere
    columns: Tensor  # [batch, length, top], logit columns of the target's likeliest tokens
    probs: Tensor  # [batch, length, top], 0 where the column is missing or padded


class Material:
    """Texts and lessons as batches, the last part held out for evaluation.

    Only answers are learned: a draft never continues a prompt.

    Args:
        num_held_out: how many of the last texts; by default one in fifty.
    """

    def __init__(
        self, texts: Texts, lesson: Lesson, logit_token_ids: Tensor, num_held_out: int | None = None
    ) -> None:
        self._texts = texts
        self._lesson = lesson
        size = int(max(texts.token_ids.max(), lesson.top_ids.max(), logit_token_ids.max())) + 1
        self._column_of = np.full(size, _IGNORED, np.int64)
        self._column_of[logit_token_ids.cpu().numpy()] = np.arange(len(logit_token_ids))
        if num_held_out is None:
            num_held_out = max(1, int(_HELD_OUT * len(texts)))
        self.num_training = max(1, len(texts) - num_held_out)
        self.held_out = range(len(texts) - num_held_out, len(texts))
        self._lengths = np.diff(texts.ends, prepend=0)[: self.num_training]

    def training_indices(self, step: int, size: int, seed: int) -> list[int]:
        """The texts of batch number `step`: a function of the arguments, so that a run can resume.

        Texts of similar length share a batch, which saves padding.
        """
        per_epoch = math.ceil(self.num_training / size)
        epoch, place = divmod(step, per_epoch)
        generator = np.random.default_rng((seed, epoch))
        shifts = generator.uniform(1 - _SPREAD, 1 + _SPREAD, self.num_training)
        batches = np.array_split(np.argsort(self._lengths * shifts), per_epoch)
        indices: list[int] = batches[generator.permutation(per_epoch)[place]].tolist()
        return indices

    def training_texts(self, count: int) -> list[list[int]]:
        """`count` texts from all parts of the training texts."""
        chosen = np.linspace(0, self.num_training - 1, min(count, self.num_training))
        texts = list(self._texts)
        return [texts[index] for index in chosen.astype(int)]

    def batch(self, indices: list[int], device: torch.device) -> Batch:
        """These texts, padded behind their ends."""
        spans = [slice(*self._texts.bounds(index)) for index in indices]
        token_ids = [self._texts.token_ids[span].astype(np.int64) for span in spans]
        lengths = zip(map(len, token_ids), self._texts.prompt_lengths[indices], strict=True)
        # Answers are learned, from the last token of their prompts on.
        weights = [np.arange(length) >= max(1, prompt) - 1 for length, prompt in lengths]
        columns = _padded([self._column_of[self._lesson.top_ids[span]] for span in spans], _IGNORED)
        probs = _padded([self._lesson.top_probs[span].astype(np.float32) for span in spans])
        tensors = (
            _padded(token_ids),
            _padded([np.ones_like(ids) for ids in token_ids]),
            _padded([learned.astype(np.float32) for learned in weights]),
            columns,
            probs.masked_fill_(columns == _IGNORED, 0.0),
        )
        return Batch(*(tensor.to(device) for tensor in tensors))


def _padded(rows: Sequence[Array], value: int = 0) -> Tensor:
    """[num_rows, length of the longest, ...], filled up with `value`."""
    return pad_sequence([torch.from_numpy(row) for row in rows], True, value)
