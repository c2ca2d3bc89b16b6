"""Training: the student's probabilities move towards the target's (forward KL)."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outrider.distill.shared.material import Batch, Material

_WARM_UP = 0.05
_MAX_GRADIENT_NORM = 1.0

Optimizers = Sequence[torch.optim.Optimizer]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    num_steps: int
    batch_size: int
    learning_rate: float
    seed: int
    evaluate_every: int = 100

    def factor(self, step: int) -> float:
        """Of learning rates: linear warm-up, then a cosine down to a tenth."""
        warm_up = max(1, int(_WARM_UP * self.num_steps))
        if step < warm_up:
            return (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.num_steps - warm_up)
        return 0.55 + 0.45 * math.cos(math.pi * progress)


@dataclass
class History:
    """Losses and scores so far, for the record."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, list[float]]] = field(default_factory=list)
    """On held-out texts, with the steps after which they were taken."""


@dataclass(frozen=True)
class Course:
    """What a model learns, and how."""

    optimizers: Optimizers
    """With the learning rates after the warm-up."""
    loss: Callable[[int], Tensor]
    """Of a step, by its number."""
    scores: Callable[[], list[float]]
    """On held-out texts."""


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


def fast_products(device: torch.device) -> torch.autocast:
    """The context in which products are computed in `training_dtype`."""
    dtype = training_dtype(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def run(model: Any, batch: Batch) -> Tensor:
    """The student's logits, [batch, length, num_ids]."""
    with fast_products(model.device):
        output: Tensor = model(
            input_ids=batch.token_ids, attention_mask=batch.attention_mask, use_cache=False
        ).logits
    return output


def course(model: Any, material: Material, schedule: Schedule) -> Course:
    """The course of a student that gives logits as its target does."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    size = schedule.batch_size

    def loss(step: int) -> Tensor:
        indices = material.training_indices(step, size, schedule.seed)
        batch = material.batch(indices, model.device)
        return distillation_loss(run(model, batch), batch)

    return Course(
        [torch.optim.AdamW(parameters, lr=schedule.learning_rate, betas=(0.9, 0.95))],
        loss,
        lambda: [agreement(model, material, size)],
    )


def train(
    model: Any,
    course: Course,
    schedule: Schedule,
    checkpoint: Path,
    checkpoint_every: int,
    progress: Callable[[History], None],
) -> History:
    """Trains in place, from the checkpoint on if there is one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rates = [group["lr"] for group in _groups(course.optimizers)]
    history = _restore(model, course.optimizers, checkpoint)
    for step in range(history.step, schedule.num_steps):
        for group, rate in zip(_groups(course.optimizers), rates, strict=True):
            group["lr"] = rate * schedule.factor(step)
        loss = course.loss(step)
        for optimizer in course.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
        for optimizer in course.optimizers:
            optimizer.step()
        history.step = step + 1
        history.losses.append(round(loss.item(), 4))
        is_last = history.step == schedule.num_steps
        if history.step % schedule.evaluate_every == 0 or is_last:
            history.scores.append((history.step, [round(score, 4) for score in course.scores()]))
        if history.step % checkpoint_every == 0 or is_last:
            _save(model, course.optimizers, history, checkpoint)
        progress(history)
    return history


def _groups(optimizers: Optimizers) -> Iterator[dict[str, Any]]:
    return (group for optimizer in optimizers for group in optimizer.param_groups)


def _trainable(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _save(model: Any, optimizers: Optimizers, history: History, checkpoint: Path) -> None:
    state = {
        "model": dict(_trainable(model)),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "history": asdict(history),
    }
    partial = checkpoint.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, checkpoint)


def _restore(model: Any, optimizers: Optimizers, checkpoint: Path) -> History:
    if not checkpoint.is_file():
        return History()
    # To the CPU: Adam keeps step counts there, and would wait for a device for each of them.
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, parameter in _trainable(model):
            parameter.copy_(state["model"][name])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return History(**state["history"])
