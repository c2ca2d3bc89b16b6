"""Where a model runs, in which precision, and its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from outrider.engine.ranks import Ranks
from outrider.errors import ConfigurationError, ModelNotFound


def choose_device(name: str) -> torch.device:
    """The torch device of a name such as "auto", "cpu", "cuda" or "cuda:1"."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"unknown device {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device {name!r} is not on this machine")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a name; "auto" is bfloat16 on a GPU and float32 on a CPU.

    A CPU's bfloat16 passes are no faster as long as they are short, and a text comes out
    otherwise by how many tokens a pass verifies.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name == "int8":
        if device.type != "cpu":
            raise ConfigurationError("int8 runs on a CPU only")
        return torch.float32  # of all that is not a linear layer
    if name not in dtypes:
        raise ConfigurationError(f"unknown dtype {name!r}; known: auto, int8, {', '.join(dtypes)}")
    return dtypes[name]


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
