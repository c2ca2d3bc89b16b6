"""The student before training: layers of the target, or an earlier draft."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import AutoConfig

from outrider.distill.layers.refit import record, refit
from outrider.distill.shared.settings import RECORD
from outrider.errors import ConfigurationError, UnsupportedModel
from outrider.models.student import first_trained, keep_layers, most_changing_layers


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


def chosen_layers(target: Any, layers: Sequence[int], probe: list[int], count: int) -> list[int]:
    """The layers asked for; by default the `count` that change their input most.

    Args:
        probe: token ids of a text to run.
    """
    if not layers:
        return most_changing_layers(target, torch.tensor([probe], device=target.device), count)
    return list(layers)


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
