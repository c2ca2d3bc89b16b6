"""A model's device and precision."""

import torch

from outrider.errors import ConfigurationError

QUANTIZED = ("int4", "int8")
"""Precisions of the weights of linear layers only."""


def choose_device(name: str) -> torch.device:
    """The torch device of a name such as "auto", "cpu", "cuda" or "cuda:1"."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"unknown device {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device {name!r} is not on this machine")
    if device.type == "cuda":
        # cuDNN's attention, which torch would prefer, plans anew for every length: tenths of a
        # second for a chunk of a prompt that takes milliseconds.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def is_gpu(device: torch.device) -> bool:
    """Whether the device is one on which every kernel has to be launched."""
    return device.type == "cuda"


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a name; "auto" is bfloat16 on a GPU and float32 on a CPU.

    On CPUs, short passes are no faster in bfloat16 (`benchmarks/passes.py`).
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name in QUANTIZED:
        if device.type != "cpu":
            raise ConfigurationError(f"{name} runs on a CPU only")
        return torch.float32  # of everything but linear layers
    if name not in dtypes:
        known = ", ".join(("auto", *QUANTIZED, *dtypes))
        raise ConfigurationError(f"unknown dtype {name!r}; known: {known}")
    return dtypes[name]
