from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int4", "int8"])
def test_layers_of_every_precision_are_compiled(
    dtype: str, tiny_models: Callable[..., Path]
) -> None:
    """What TorchScript does not take still runs, a third slower, and nobody would notice."""
    network = Engine(EngineOptions(str(tiny_models("llama")), "cpu", dtype, slots=1)).network
    assert isinstance(network._run, torch.jit.ScriptModule)
