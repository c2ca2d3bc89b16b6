"""The stages of a distillation, each resumable, and the record of the run."""

import functools
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from outrider import __version__
from outrider.distill.beginning import (
    RECORD,
    check_layers,
    check_start,
    chosen_layers,
    recorded_layers,
    remove_layers,
)
from outrider.distill.fake_int8 import fake_int8, remove_fake_int8
from outrider.distill.teaching import Lesson, teach
from outrider.distill.texts import Texts
from outrider.distill.training import History, Material, Schedule, train, training_dtype
from outrider.distill.writing import SHARD_SIZE, Writer, texts_of_file
from outrider.embedded import resolve_model
from outrider.engine.device import choose_device
from outrider.engine.engine import Engine
from outrider.engine.loading.draft_vocabulary import trim_head, write_draft_vocabulary
from outrider.engine.loading.weights import load_model
from outrider.engine.options import EngineOptions
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.errors import ConfigurationError
from outrider.models.student import freeze
from outrider.models.tokenizer_files import load_tokenizer
from outrider.serving.loading import wait_for_own_thread


@dataclass(frozen=True)
class Recipe:
    """The settings of `outrider distill`; see its flags."""

    target: str
    out: Path
    num_texts: int
    prompts: Path | None
    text: Path | None
    data: Path | None
    temperatures: tuple[float, ...]
    start_from: Path | None
    layers: tuple[int, ...]
    num_layers: int
    trained_layers: int | None
    refit_texts: int
    int8: bool
    draft_vocabulary: int
    steps: int
    batch_size: int
    learning_rate: float
    max_length: int
    checkpoint_every: int
    seed: int
    device: str
    dtype: str
    threads: int | None


def distill(recipe: Recipe, console: Console) -> Path:
    """Runs all stages; returns the draft's folder.

    Raises:
        ConfigurationError: settings contradict each other or an earlier run in `out`.
        ModelNotFound, UnsupportedModel: see `Engine`.
    """
    folder = resolve_model(recipe.target)
    if recipe.start_from is not None:
        check_start(recipe.start_from, folder, recipe.layers)
    else:
        check_layers(folder, recipe.layers, recipe.num_layers)
    work = recipe.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    check_same_recipe(recipe, work / "recipe.json")
    began = time.perf_counter()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        texts, lesson = _write_and_teach(recipe, folder, work, progress)
        checkpoint = work / "checkpoint.pt"
        student, kept = _beginning(recipe, folder, texts)
        head = student.get_output_embeddings()
        vocabulary = texts.frequent_tokens(head.out_features, recipe.draft_vocabulary)
        logit_token_ids = trim_head(student, vocabulary)
        material = Material(texts, lesson, logit_token_ids)
        if recipe.start_from is None:
            is_new = not checkpoint.is_file()
            examples = material.training_texts(recipe.refit_texts if is_new else 0)
            remove_layers(student, kept, recipe.trained_layers, examples, progress)
        freeze(student, recipe.trained_layers)
        if recipe.int8:
            fake_int8(student)
        history = _train(recipe, student, material, checkpoint, progress)
        remove_fake_int8(student)
    student.set_output_embeddings(head)
    _export(student, folder, vocabulary, recipe.out, recipe.int8)
    seconds = round(time.perf_counter() - began, 1)
    _write_record(recipe, texts, kept, history, seconds)
    return recipe.out


def _beginning(recipe: Recipe, folder: str, texts: Texts) -> tuple[Any, list[int]]:
    """The model that the student is made of, and the target's layers that it has or will have."""
    start = recipe.start_from
    model = load_model(str(start or folder), choose_device(recipe.device), torch.float32)
    if start is not None:
        return model, recorded_layers(start)
    probe = texts.token_ids[: recipe.max_length].tolist()
    return model, chosen_layers(model, recipe.layers, probe, recipe.num_layers)


def check_same_recipe(recipe: Recipe, path: Path) -> None:
    """Refuses to resume a run with other settings, unless it left nothing behind."""
    document = json.dumps(asdict(recipe), default=str, indent=1)
    if path.is_file() and set(path.parent.iterdir()) != {path}:
        before, now = json.loads(path.read_text()), json.loads(document)
        if names := [name for name in now if now[name] != before.get(name)]:
            raise ConfigurationError(
                f"{path.parent} is of a run with other settings ({', '.join(names)}): "
                "remove it, or choose another --out"
            )
    path.write_text(document)


def _write_and_teach(
    recipe: Recipe, folder: str, work: Path, progress: Progress
) -> tuple[Texts, Lesson]:
    """All texts and the target's lessons on them, from files where they exist."""
    options = EngineOptions(
        folder,
        recipe.device,
        recipe.dtype,
        recipe.threads,
        SHARD_SIZE,
        recipe.max_length,
        batch_invariant=False,
    )
    engine = wait_for_own_thread(lambda: Engine(options))
    with closing(Scheduler(engine, engine.cache.num_slots)) as scheduler:
        shards = [
            texts
            for texts in _text_shards(recipe, engine, scheduler, folder, work, progress)
            if len(texts)
        ]
    if not shards:
        raise ConfigurationError("there are no texts to learn from")
    task = progress.add_task("target reads", total=len(shards))
    lessons = []
    for number, texts in enumerate(shards):
        path = work / f"lesson-{number:05}.npz"
        lessons.append(_cached(path, Lesson, functools.partial(teach, engine, texts)))
        progress.advance(task)
    return Texts.joined(shards), Lesson.joined(lessons)


def _cached(path: Path, kind: Any, make: Callable[[], Any]) -> Any:
    """The content of `path`, made first if it does not exist."""
    if not path.is_file():
        make().save(path)
    return kind.load(path)


def _text_shards(
    recipe: Recipe,
    engine: Engine,
    scheduler: Scheduler,
    folder: str,
    work: Path,
    progress: Progress,
) -> Iterator[Texts]:
    tokenizer = load_tokenizer(folder)
    if recipe.data is not None:
        yield from _truncated(Texts.load(recipe.data), recipe.max_length).parts(SHARD_SIZE)
    if recipe.text is not None:
        yield from texts_of_file(recipe.text, tokenizer, recipe.max_length).parts(SHARD_SIZE)
    questions = None
    if recipe.prompts is not None:
        questions = [line for line in recipe.prompts.read_text().splitlines() if line.strip()]
    count = recipe.num_texts if questions is None else len(questions)
    num_shards = -(-count // SHARD_SIZE)
    if num_shards == 0:
        return
    writer = Writer(engine, scheduler, tokenizer, recipe.max_length, recipe.temperatures)
    task = progress.add_task("target writes", total=num_shards)
    for number in range(num_shards):
        part = questions and questions[number * SHARD_SIZE : (number + 1) * SHARD_SIZE]
        path = work / f"texts-{number:05}.npz"
        yield _cached(path, Texts, functools.partial(writer.shard, number, part))
        progress.advance(task)


def _truncated(texts: Texts, max_length: int) -> Texts:
    sequences = [text[:max_length] for text in texts]
    return Texts.of(sequences, texts.prompt_lengths.tolist())


def _train(
    recipe: Recipe,
    student: Any,
    material: Material,
    checkpoint: Path,
    progress: Progress,
) -> History:
    schedule = Schedule(recipe.steps, recipe.batch_size, recipe.learning_rate, recipe.seed)
    task = progress.add_task("student learns", total=recipe.steps)

    def show(history: History) -> None:
        agreed = f", agrees {history.agreements[-1][1]:.1%}" if history.agreements else ""
        text = f"student learns (loss {history.losses[-1]:.3f}{agreed})"
        progress.update(task, completed=history.step, description=text)

    return train(student, material, schedule, checkpoint, recipe.checkpoint_every, show)


def _export(student: Any, folder: str, vocabulary: list[int], out: Path, int8: bool) -> None:
    # Rounded to int8 again, float32 gives the weights that it was trained with.
    student.to("cpu", torch.float32 if int8 else torch.bfloat16).save_pretrained(out)
    load_tokenizer(folder).save_pretrained(out)
    write_draft_vocabulary(out, vocabulary)


def _write_record(
    recipe: Recipe, texts: Texts, kept: list[int], history: History, seconds: float
) -> None:
    record = {
        "recipe": json.loads(json.dumps(asdict(recipe), default=str)),
        "layers": kept,
        "num_texts": len(texts),
        "num_tokens": len(texts.token_ids),
        "held_out_agreement": history.agreements,
        "losses": history.losses[:: max(1, len(history.losses) // 200)],
        "seconds_of_this_start": seconds,
        "trained_in": str(training_dtype(choose_device(recipe.device))).removeprefix("torch."),
        "versions": {
            "outrider": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (recipe.out / RECORD).write_text(json.dumps(record, indent=1) + "\n")
