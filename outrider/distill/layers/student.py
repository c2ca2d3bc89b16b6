"""A student: some of the target's layers, under its embedding and head."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from outrider.errors import UnsupportedModel


def layer_list(model: Any) -> nn.ModuleList:
    """The model's decoder layers. Raises UnsupportedModel if they are not one list."""
    count = model.config.num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise UnsupportedModel(f"{model.config.model_type}: its layers are not one list")
    return lists[0]


def keep_layers(model: Any, kept: Sequence[int]) -> None:
    """Drops all layers but `kept`, in place."""
    layers = layer_list(model)
    chosen = [layers[index] for index in kept]
    del layers[:]
    layers.extend(chosen)
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    kinds = getattr(model.config, "layer_types", None)
    model.config.num_hidden_layers = len(kept)
    if kinds is not None:
        model.config.layer_types = [kinds[index] for index in kept]


def freeze(model: Any, num_trained_layers: int | None) -> None:
    """Freezes embedding, head, and all but the last layers.

    Args:
        num_trained_layers: how many of the last layers are trained; None: all.
    """
    model.requires_grad_(True)
    frozen = layer_list(model)[: first_trained(model, num_trained_layers)]
    for module in (model.get_input_embeddings(), *frozen, model.get_output_embeddings()):
        module.requires_grad_(False)


def first_trained(model: Any, num_trained_layers: int | None) -> int:
    """The index of the first layer that is trained."""
    count = len(layer_list(model))
    return 0 if num_trained_layers is None else max(0, count - num_trained_layers)


def most_changing_layers(model: Any, token_ids: Tensor, count: int) -> list[int]:
    """Indices of the layers whose output is least similar (cosine) to their input.

    Args:
        token_ids: [1, num_tokens], a text to run.
    """
    with torch.inference_mode():
        states = model(token_ids, output_hidden_states=True, use_cache=False).hidden_states
    similarities = [
        nn.functional.cosine_similarity(before.float(), after.float(), dim=-1).mean().item()
        for before, after in itertools.pairwise(states)
    ]
    return sorted(sorted(range(len(similarities)), key=similarities.__getitem__)[:count])
