"""Training: the student's probabilities move towards the target's (forward KL)."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from outrider.distill.teaching import Lesson
from outrider.distill.texts import Array, Texts

_IGNORED = -1
_WARM_UP = 0.05
_MAX_GRADIENT_NORM = 1.0
# How much the lengths of texts in a batch may differ, as a share of them.
_SPREAD = 0.1


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    num_steps: int
    batch_size: int
    learning_rate: float
    seed: int
    evaluate_every: int = 100

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a tenth."""
        warm_up = max(1, int(_WARM_UP * self.num_steps))
        if step < warm_up:
            return self.learning_rate * (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.num_steps - warm_up)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


@dataclass
class History:
    """Losses and agreement so far, for the record."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    agreements: list[tuple[int, float]] = field(default_factory=list)


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
    """

    def __init__(
        self, texts: Texts, lesson: Lesson, logit_token_ids: Tensor, held_out: float = 0.02
    ) -> None:
        self._texts = texts
        self._lesson = lesson
        size = int(max(texts.token_ids.max(), lesson.top_ids.max(), logit_token_ids.max())) + 1
        self._column_of = np.full(size, _IGNORED, np.int64)
        self._column_of[logit_token_ids.cpu().numpy()] = np.arange(len(logit_token_ids))
        num_held_out = max(1, int(held_out * len(texts)))
        self.num_training = max(1, len(texts) - num_held_out)
        self.held_out = range(len(texts) - num_held_out, len(texts))
        self._lengths = np.diff(texts.ends, prepend=0)[: self.num_training]

    def training_batch(self, step: int, size: int, seed: int, device: torch.device) -> Batch:
        """Batch number `step`: a function of its arguments alone, so that a run can resume.

        Texts of similar length share a batch, which saves padding.
        """
        per_epoch = math.ceil(self.num_training / size)
        epoch, place = divmod(step, per_epoch)
        generator = np.random.default_rng((seed, epoch))
        shifts = generator.uniform(1 - _SPREAD, 1 + _SPREAD, self.num_training)
        batches = np.array_split(np.argsort(self._lengths * shifts), per_epoch)
        return self.batch(batches[generator.permutation(per_epoch)[place]].tolist(), device)

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


def distillation_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the student under the target's probabilities, a mean over answers' tokens.

    It differs from the forward KL divergence by the target's entropy, which is constant.

    Args:
        logits: [batch, length, num_ids], the student's.
    """
    log_probs = logits.float().log_softmax(dim=-1)
    chosen = log_probs.gather(-1, batch.columns.clamp(min=0))
    by_place = (batch.probs * chosen).sum(dim=-1)
    return -(batch.weights * by_place).sum() / batch.weights.sum()


def agreement(model: Any, material: Material, batch_size: int) -> float:
    """How often the student's likeliest token is the target's, on the held-out texts."""
    agreed = total = 0
    indices = list(material.held_out)
    with torch.inference_mode():
        for begin in range(0, len(indices), batch_size):
            batch = material.batch(indices[begin : begin + batch_size], model.device)
            logits = run(model, batch)
            same = (logits.argmax(dim=-1) == batch.columns[..., 0]) & (batch.weights == 1)
            agreed += int(same.sum())
            total += int(batch.weights.sum())
    return agreed / total


def training_dtype(device: torch.device) -> torch.dtype:
    """The dtype of products: bfloat16 where the hardware has instructions for it.

    Training's passes are long, so that CPUs, too, are twice as fast with it. Weights, their
    gradients' sums and the loss stay in float32.
    """
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported()
    else:
        native = device.type == "cuda"
    return torch.bfloat16 if native else torch.float32


def run(model: Any, batch: Batch) -> Tensor:
    """The student's logits, [batch, length, num_ids], in `training_dtype`."""
    dtype = training_dtype(model.device)
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        output: Tensor = model(
            input_ids=batch.token_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
    return output


def train(
    model: Any,
    material: Material,
    schedule: Schedule,
    checkpoint: Path,
    checkpoint_every: int,
    progress: Callable[[History], None],
) -> History:
    """Trains in place, from the checkpoint on if there is one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.95))
    history = _restore(model, optimizer, checkpoint)
    for step in range(history.step, schedule.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        batch = material.training_batch(step, schedule.batch_size, schedule.seed, model.device)
        loss = distillation_loss(run(model, batch), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
        optimizer.step()
        history.step = step + 1
        history.losses.append(round(loss.item(), 4))
        is_last = history.step == schedule.num_steps
        if history.step % schedule.evaluate_every == 0 or is_last:
            score = agreement(model, material, schedule.batch_size)
            history.agreements.append((history.step, round(score, 4)))
        if history.step % checkpoint_every == 0 or is_last:
            _save(model, optimizer, history, checkpoint)
        progress(history)
    return history


def _trainable(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _save(model: Any, optimizer: Any, history: History, checkpoint: Path) -> None:
    state = {
        "model": dict(_trainable(model)),
        "optimizer": optimizer.state_dict(),
        "history": asdict(history),
    }
    partial = checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, checkpoint)


def _restore(model: Any, optimizer: Any, checkpoint: Path) -> History:
    if not checkpoint.is_file():
        return History()
    # To the CPU: Adam keeps step counts there, and would wait for a device for each of them.
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, parameter in _trainable(model):
            parameter.copy_(state["model"][name])
    optimizer.load_state_dict(state["optimizer"])
    return History(**state["history"])
