"""The stages before learning: the target writes texts and reads them. Each can be resumed."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from outrider.distill.shared.settings import Recipe
from outrider.distill.shared.teaching import Lesson, teach
from outrider.distill.shared.texts import Array, Texts, read_text
from outrider.distill.shared.training import training_dtype
from outrider.distill.shared.writing import SHARD_SIZE, Writer, texts_of_file
from outrider.engine.device import choose_device
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.errors import ConfigurationError
from outrider.models.tokenizer_files import load_tokenizer
from outrider.serving.loading import wait_for_own_thread

GREEDY = (0.0,)


@dataclass(frozen=True)
class Reading:
    """All texts, and what the target made of them."""

    texts: Texts
    lesson: Lesson
    num_held_out: int | None
    """How many of the last texts answer prompts that are held out; None: there are none such."""
    states: list[Array]
    """Hidden states of the texts, one after the other: see `teach`. In files, read as needed."""

    def hidden_states(self, begin: int, end: int) -> Tensor:
        """Those of tokens `begin` to `end`, [end - begin, num_layers * hidden_size]."""
        parts, offset = [], 0
        for states in self.states:
            part = states[max(0, begin - offset) : max(0, end - offset)]
            parts.append(torch.from_numpy(part.copy()).view(torch.bfloat16))
            offset += len(states)
        return torch.cat(parts)


def write_and_read(recipe: Recipe, folder: str, work: Path, progress: Progress) -> Reading:
    """All texts, written and read by the target in `folder`, or from files in `work`.

    Raises:
        ConfigurationError: there are no texts.
    """
    dtype = recipe.dtype
    if dtype == "auto":  # passes are as long as in training: 64 texts at once, or all of a text
        dtype = str(training_dtype(choose_device(recipe.device))).removeprefix("torch.")
    options = EngineOptions(
        folder,
        recipe.device,
        dtype,
        recipe.threads,
        SHARD_SIZE,
        recipe.max_length,
        batch_invariant=False,
    )
    engine = wait_for_own_thread(lambda: Engine(options))
    with closing(Scheduler(engine, engine.cache.num_slots)) as scheduler:
        stage = _Writing(recipe, engine, scheduler, folder, work, progress)
        shards = [texts for texts in stage.shards() if len(texts)]
        if not shards:
            raise ConfigurationError("there are no texts to learn from")
        held_out = [texts for texts in stage.held_out_shards() if len(texts)]
    num_held_out = sum(map(len, held_out)) if recipe.held_out_prompts else None
    shards += held_out
    task = progress.add_task("target reads", total=len(shards))
    lessons, states = [], []
    for number, texts in enumerate(shards):
        lesson, hidden = _lesson(work, number, functools.partial(teach, engine, texts, recipe.read))
        lessons.append(lesson)
        states.append(hidden)
        progress.advance(task)
    return Reading(Texts.joined(shards), Lesson.joined(lessons), num_held_out, states)


def _lesson(
    work: Path, number: int, make: Callable[[], tuple[Lesson, Array]]
) -> tuple[Lesson, Array]:
    """A lesson and hidden states from files, made first if they do not exist."""
    path, states_path = work / f"lesson-{number:05}.npz", work / f"states-{number:05}.npy"
    if not path.is_file():
        lesson, states = make()
        partial = states_path.with_suffix(".partial.npy")
        np.save(partial, states)
        os.replace(partial, states_path)
        lesson.save(path)
    return Lesson.load(path), np.load(states_path, mmap_mode="r")


@dataclass(frozen=True)
class _Writing:
    """The texts to learn from, in shards: given ones first, then those that the target writes."""

    recipe: Recipe
    engine: Engine
    scheduler: Scheduler
    folder: str
    work: Path
    progress: Progress

    def shards(self) -> Iterator[Texts]:
        recipe = self.recipe
        if recipe.data is not None:
            given = Texts.load(recipe.data)
            sequences = [text[: recipe.max_length] for text in given]
            yield from Texts.of(sequences, given.prompt_lengths.tolist()).parts(SHARD_SIZE)
        if recipe.text is not None:
            tokenizer = load_tokenizer(self.folder)
            yield from texts_of_file(recipe.text, tokenizer, recipe.max_length).parts(SHARD_SIZE)
        questions = _lines(recipe.prompts)
        count = recipe.num_texts if questions is None else len(questions)
        yield from self._written("texts", count, questions, recipe.temperatures)

    def held_out_shards(self) -> Iterator[Texts]:
        questions = _lines(self.recipe.held_out_prompts) or []
        return self._written("held-out", len(questions), questions, GREEDY)

    def _written(
        self, name: str, count: int, questions: list[str] | None, temperatures: tuple[float, ...]
    ) -> Iterator[Texts]:
        if count == 0:
            return
        num_shards = -(-count // SHARD_SIZE)
        tokenizer, length = load_tokenizer(self.folder), self.recipe.max_length
        writer = Writer(self.engine, self.scheduler, tokenizer, length, temperatures)
        task = self.progress.add_task(f"target writes {name}", total=num_shards)
        for number in range(num_shards):
            part = questions and questions[number * SHARD_SIZE : (number + 1) * SHARD_SIZE]
            path = self.work / f"{name}-{number:05}.npz"
            if not path.is_file():
                writer.shard(number, part).save(path)
            yield Texts.load(path)
            self.progress.advance(task)


def _lines(path: Path | None) -> Any:
    """The lines of a file that are not empty; None without a file."""
    if path is None:
        return None
    return [line for line in read_text(path).splitlines() if line.strip()]
