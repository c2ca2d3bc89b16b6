"""A model's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from outrider.engine.ranks import Ranks
from outrider.errors import ModelNotFound


def load_model(
    name: str, device: torch.device, dtype: torch.dtype, ranks: Ranks | None = None
) -> Any:
    """A causal language model from a Hugging Face id or a local folder, ready to infer.

    Args:
        ranks: who else holds a part of it.

    Raises:
        ModelNotFound: no such model, or its files cannot be read.
        UnsupportedModel: it cannot be parted among `ranks`.
    """
    disable_progress_bar()  # the service reports what loads by itself
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    try:
        config = AutoConfig.from_pretrained(name)
        parting = ranks.loading(config) if ranks else {}
        model = load(name, dtype=dtype, **parting)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelNotFound(f"cannot load the model {name!r}: {_first_line(error)}") from error
    return model.eval().requires_grad_(False).to(device)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
