"""A draft made of some of the target's own layers, without training."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from outrider.distill.student import keep_layers, most_changing_layers
from outrider.embedded.cache import cache_folder

_PROBE = "A bicycle stays upright because the rider steers into the direction of a fall."


def layer_draft(folder: str, num_layers: int) -> Path:
    """The folder of a model with the layers of `folder` that change their input most."""
    output = cache_folder() / f"layers-{num_layers}-of-{Path(folder).name}"
    if not output.is_dir():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        token_ids = tokenizer(_PROBE, return_tensors="pt").input_ids
        keep_layers(model, most_changing_layers(model, token_ids, num_layers))
        model.save_pretrained(output)
        tokenizer.save_pretrained(output)
    return output
