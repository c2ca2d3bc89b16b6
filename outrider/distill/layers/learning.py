"""A student of some of the target's layers learns to give the target's probabilities."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import AutoConfig

from outrider.distill.layers.refit import record, refit
from outrider.distill.layers.student import (
    first_trained,
    freeze,
    keep_layers,
    most_changing_layers,
)
from outrider.distill.shared.fake_int8 import fake_int8, remove_fake_int8
from outrider.distill.shared.material import Material
from outrider.distill.shared.settings import RECORD, Recipe
from outrider.distill.shared.stages import Reading
from outrider.distill.shared.training import History, Schedule, course, train
from outrider.engine.device import choose_device
from outrider.engine.loading.draft_vocabulary import trim_head, write_draft_vocabulary
from outrider.engine.loading.weights import load_model
from outrider.errors import ConfigurationError, UnsupportedModel


class LayerLearner:
    """Makes a draft of some of the target's layers; `record` is its part of the run's record.

    Raises:
        ConfigurationError: the target, or the draft to start from, lacks these layers.
    """

    reads: tuple[int, ...] = ()
    """The layers of the target whose hidden states it reads."""

    def __init__(self, recipe: Recipe, target: str) -> None:
        self._recipe, self._target = recipe, target
        if recipe.start_from is not None:
            check_start(recipe.start_from, target, recipe.layers)
        else:
            check_layers(target, recipe.layers, recipe.num_layers)

    def learn(
        self,
        reading: Reading,
        schedule: Schedule,
        checkpoint: Path,
        progress: Progress,
        show: Callable[[History], None],
    ) -> History:
        recipe, texts = self._recipe, reading.texts
        student, kept = self._beginning(reading)
        head = student.get_output_embeddings()
        vocabulary = texts.frequent_tokens(head.out_features, recipe.draft_vocabulary)
        material = Material(
            texts, reading.lesson, trim_head(student, vocabulary), reading.num_held_out
        )
        if recipe.start_from is None:
            is_new = not checkpoint.is_file()
            examples = material.training_texts(recipe.refit_texts if is_new else 0)
            remove_layers(student, kept, recipe.trained_layers, examples, progress)
        freeze(student, recipe.trained_layers)
        if recipe.int8:
            fake_int8(student)
        every = recipe.checkpoint_every
        lessons = course(student, material, schedule)
        history = train(student, lessons, schedule, checkpoint, every, show)
        remove_fake_int8(student)
        student.set_output_embeddings(head)
        self._student, self._vocabulary, self.record = student, vocabulary, {"layers": kept}
        return history

    def shown(self, history: History) -> str:
        return f", agrees {history.scores[-1][1][0]:.1%}" if history.scores else ""

    def export(self) -> None:
        out = self._recipe.out
        # Rounded to int8 again, float32 gives the weights that it was trained with.
        dtype = torch.float32 if self._recipe.int8 else torch.bfloat16
        self._student.to("cpu", dtype).save_pretrained(out)
        write_draft_vocabulary(out, self._vocabulary)

    def _beginning(self, reading: Reading) -> tuple[Any, list[int]]:
        """The model that the student is made of, and the target's layers that it has or will
        have."""
        recipe, start = self._recipe, self._recipe.start_from
        device = choose_device(recipe.device)
        model = load_model(str(start or self._target), device, torch.float32)
        if start is not None:
            return model, recorded_layers(start)
        if recipe.layers:
            return model, list(recipe.layers)
        probe = torch.tensor([reading.texts.token_ids[: recipe.max_length].tolist()], device=device)
        return model, most_changing_layers(model, probe, recipe.num_layers)


def check_start(draft: Path, target: str, layers: Sequence[int]) -> None:
    """Checks that `draft` can be trained further, as a draft of the model in `target`.

    Args:
        layers: the layers asked for; empty: those that it has.

    Raises:
        ConfigurationError: it cannot.
    """
    if not (draft / RECORD).is_file():
        raise ConfigurationError(f"{draft} is no draft of `outrider distill`: it has no {RECORD}")
    if layers and list(layers) != recorded_layers(draft):
        raise ConfigurationError(f"{draft} has the layers {recorded_layers(draft)}, and no others")
    try:
        configs = [AutoConfig.from_pretrained(path).get_text_config() for path in (draft, target)]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read what {draft} or {target} is: {error}") from error
    if len({(config.model_type, config.hidden_size, config.vocab_size) for config in configs}) > 1:
        raise ConfigurationError(f"{draft} is the draft of another target")


def check_layers(target: str, layers: Sequence[int], count: int) -> None:
    """Checks that the model in `target` has these layers, or without any, more than `count`.

    Raises:
        ConfigurationError: it does not.
    """
    try:
        num_layers = AutoConfig.from_pretrained(target).get_text_config().num_hidden_layers
    except (OSError, ValueError):
        return  # loading the model will raise
    if layers and max(layers) >= num_layers:
        raise ConfigurationError(f"the target has {num_layers} layers, which count from 0")
    if not layers and count >= num_layers:
        raise ConfigurationError(f"the target has {num_layers} layers: --num-layers must be fewer")


def recorded_layers(draft: Path) -> list[int]:
    """The target's layers that `draft` was made of."""
    return json.loads((draft / RECORD).read_text())["layers"]  # type: ignore[no-any-return]


def remove_layers(
    model: Any,
    kept: list[int],
    num_trained_layers: int | None,
    texts: list[list[int]],
    progress: Progress,
) -> None:
    """Removes all layers but `kept`; with texts, those to be trained are refitted."""
    if not texts:
        keep_layers(model, kept)
        return
    task = progress.add_task("layers are refitted", total=2)
    passages = record(model, texts, kept)
    progress.advance(task)
    keep_layers(model, kept)
    try:
        refit(model, passages, first_trained(model, num_trained_layers))
    except UnsupportedModel as error:
        progress.console.print(f"Layers are not refitted: {error}")
    progress.advance(task)
