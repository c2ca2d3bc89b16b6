"""A distillation from beginning to end, and the record of the run."""

import json
import platform
import time
from dataclasses import asdict, replace
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
from outrider.distill.eagle3.learning import FeatureLearner
from outrider.distill.layers.learning import LayerLearner
from outrider.distill.shared.settings import RECORD, Recipe
from outrider.distill.shared.stages import Reading, write_and_read
from outrider.distill.shared.training import History, Schedule, training_dtype
from outrider.embedded import resolve_model
from outrider.engine.device import choose_device
from outrider.errors import ConfigurationError
from outrider.models.tokenizer_files import load_tokenizer

# Each makes one draft: its methods are called in order, once.
LEARNERS: dict[str, type[LayerLearner] | type[FeatureLearner]] = {
    "layers": LayerLearner,
    "eagle3": FeatureLearner,
}


def distill(recipe: Recipe, console: Console) -> Path:
    """Runs all stages; returns the draft's folder.

    Raises:
        ConfigurationError: settings contradict each other or an earlier run in `out`, or a file
            cannot be read or written.
        ModelNotFound, UnsupportedModel: see `Engine`.
    """
    folder = resolve_model(recipe.target)
    learner = LEARNERS[recipe.kind](recipe, folder)
    work = recipe.out / "work"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot write to {recipe.out}: {error.strerror}") from error
    check_same_recipe(recipe, work / "recipe.json")
    began = time.perf_counter()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        reading = write_and_read(replace(recipe, read=learner.reads), folder, work, progress)
        schedule = Schedule(recipe.steps, recipe.batch_size, recipe.learning_rate, recipe.seed)
        task = progress.add_task("student learns", total=recipe.steps)

        def show(history: History) -> None:
            text = f"student learns (loss {history.losses[-1]:.3f}{learner.shown(history)})"
            progress.update(task, completed=history.step, description=text)

        history = learner.learn(reading, schedule, work / "checkpoint.pt", progress, show)
    learner.export()
    load_tokenizer(folder).save_pretrained(recipe.out)
    seconds = round(time.perf_counter() - began, 1)
    _write_record(recipe, reading, learner.record, history, seconds)
    return recipe.out


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


def _write_record(
    recipe: Recipe, reading: Reading, details: dict[str, Any], history: History, seconds: float
) -> None:
    record = {
        "recipe": json.loads(json.dumps(asdict(recipe), default=str)),
        **details,
        "num_texts": len(reading.texts),
        "num_tokens": len(reading.texts.token_ids),
        "held_out": history.scores,
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
