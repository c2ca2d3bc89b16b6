"""A draft made of some of the target's own layers, without training."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from outrider.embedded import cache_folder

_PROBE = "A bicycle stays upright because the rider steers into the direction of a fall."


def layer_draft(folder: str, num_layers: int) -> Path:
    """The folder of a model with the layers of `folder` that change their input most."""
    output = cache_folder() / f"layers-{num_layers}-of-{Path(folder).name}"
    if not output.is_dir():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        kept = most_changing_layers(model, tokenizer(_PROBE, return_tensors="pt"), num_layers)
        model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in kept)
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.layer_idx = index
        model.config.num_hidden_layers = num_layers
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return output


def most_changing_layers(model: torch.nn.Module, inputs: object, num_layers: int) -> list[int]:
    """Indices of the layers whose output is least similar (cosine) to their input."""
    with torch.inference_mode():
        states = model(**inputs, output_hidden_states=True).hidden_states  # type: ignore[operator]
    similarities = [
        torch.nn.functional.cosine_similarity(before, after, dim=-1).mean().item()
        for before, after in itertools.pairwise(states)
    ]
    return sorted(sorted(range(len(similarities)), key=similarities.__getitem__)[:num_layers])
