"""A student of some of the target's layers learns to give the target's probabilities."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from outrider.distill.layers.beginning import (
    check_layers,
    check_start,
    chosen_layers,
    recorded_layers,
    remove_layers,
)
from outrider.distill.shared.fake_int8 import fake_int8, remove_fake_int8
from outrider.distill.shared.material import Material
from outrider.distill.shared.settings import Recipe
from outrider.distill.shared.stages import Reading
from outrider.distill.shared.training import History, Schedule, course, train
from outrider.engine.device import choose_device
from outrider.engine.loading.draft_vocabulary import trim_head, write_draft_vocabulary
from outrider.engine.loading.weights import load_model
from outrider.models.student import freeze


class LayerLearner:
    """A `Learner`.

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
        probe = reading.texts.token_ids[: recipe.max_length].tolist()
        return model, chosen_layers(model, recipe.layers, probe, recipe.num_layers)
