"""The kernels for GPUs: computed by Triton's interpreter where there is none, and compiled."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.engine.attention.forward_pass import AttentionLayer, ForwardPass
from outrider.engine.attention.rope import Rotation, rotation_of
from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.chunk import Chunk
from outrider.engine.cuda import recording_check, static_pass
from outrider.engine.cuda.static_pass import Shape, StaticPass
from outrider.engine.engine import Engine
from outrider.engine.network import TransformersNetwork
from tests.outrider.engine.cuda.test_static_passes import IDS, Again, engine_of

pytestmark = pytest.mark.triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
kernels = importlib.import_module("outrider.engine.cuda.kernels")

MAX_LENGTH = 600
NUM_SLOTS = 5


class Case:
    """A pass of some rows: their heads, what their slots hold, and a rotation of `size`."""

    def __init__(
        self,
        shape: tuple[int, int],
        heads: tuple[int, int, int],
        length: int = 64,
        window: int | None = None,
        size: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        num_rows, width = shape
        num_heads, num_kv_heads, head_dim = heads
        self.layer = AttentionLayer(0, 0.3, window)
        self.shape = Shape(num_rows, width, length)

        def random(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator).to(DEVICE)

        # As a product leaves them: queries, keys and values of a token side by side.
        self.qkv = random(num_rows * width, num_heads + 2 * num_kv_heads, head_dim)
        self.split = (num_heads, num_kv_heads, num_kv_heads)
        self.stored = random(NUM_SLOTS, num_kv_heads, MAX_LENGTH, head_dim)
        starts = torch.randint(0, length - width, (num_rows, 1), generator=generator)
        starts[0] = 0  # nothing before it
        starts[-1] = length - width
        self.positions = (starts + torch.arange(width)).flatten().to(DEVICE)
        self.slots = torch.randperm(NUM_SLOTS, generator=generator)[:num_rows].to(DEVICE)
        self.rotation: Rotation | None = None
        if size:
            angles = torch.outer(
                torch.arange(MAX_LENGTH), torch.rand(size // 2, generator=generator)
            ).repeat(1, 2)
            tables = (angles.cos().to(DEVICE), angles.sin().to(DEVICE))
            self.rotation = rotation_of(*tables, head_dim).at(self.positions)

    def run(self, kernels: Any, in_place: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Output, keys and values after a pass."""
        cache = SlotCache(NUM_SLOTS, MAX_LENGTH)
        query, key, value = self.qkv.clone().split(self.split, dim=1)
        for stored in cache.storage(0, key, value):
            stored.copy_(self.stored)
        forward_pass: ForwardPass = StaticPass(
            self.shape, self.positions, self.slots, cache, kernels
        )
        output = query if in_place else None
        attended = forward_pass.attend(self.layer, query, key, value, self.rotation, output)
        assert not in_place or attended is query
        return attended, *cache.storage(0, key, value)


@pytest.mark.parametrize(
    "case",
    [
        Case((1, 1), (4, 2, 16)),
        Case((2, 4), (4, 4, 16), size=4),
        Case((2, 2), (6, 2, 24), length=300, size=24),
        Case((2, 8), (8, 2, 16), window=16, size=16),  # queries of more than one program
        Case((2, 4), (2, 2, 16), length=600, window=100, size=8),
        Case((1, 2), (2, 1, 16), length=600, window=5),  # which leaves some parts empty
    ],
)
@pytest.mark.parametrize("in_place", [False, True])
def test_they_attend_as_torch_does(
    case: Case, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_KEYS_OF_A_PART", 150)
    for found, expected in zip(case.run(kernels, in_place), case.run(None), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_long_contexts_are_read_in_parts_by_few_rows() -> None:
    assert kernels.parts_of(16, 256) == 1
    assert kernels.parts_of(16, 2048) == 4
    assert kernels.parts_of(128, 2048) == 2
    assert kernels.parts_of(1000, 8192) == 1


def test_they_compile_for_gpus() -> None:
    """What the interpreter computes is no proof of that."""
    compiling = [sys.executable, "-m", "tests.support.compile_kernels"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    finished = subprocess.run(compiling, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    compiled = [json.loads(line) for line in finished.stdout.splitlines()]
    assert len(compiled) == 15
    for kernel in compiled:
        is_short = kernel["dtype"] != "torch.float32"  # which matrix units would round
        attends = kernel["kernel"] == "_attend_kernel"
        assert kernel["has_matrix_instructions"] == (attends and is_short)
        assert kernel["shared_bytes"] < 99 * 1024  # what all GPUs of late have


@pytest.fixture
def with_kernels(as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_check, "kernels_for", lambda device: kernels)
    monkeypatch.setattr(static_pass, "SHORTEST_LENGTH", 32)


def recorded_engine(folder: Path) -> Engine:
    engine = engine_of(folder, DEVICE)
    engine.use_graphs(Again)
    return engine


# Llama's layers, GPT-NeoX's, and transformers' own with a window.
@pytest.mark.parametrize("family", ["qwen2", "gpt_neox", "mistral"])
def test_models_give_the_same_logits(
    family: str, tiny_models: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    folder = tiny_models(family)
    plain = engine_of(folder)
    request.getfixturevalue("with_kernels")
    recorded = recorded_engine(folder)
    assert recorded.graphs is not None
    assert recorded.graphs.kernels is kernels
    assert isinstance(recorded.network, TransformersNetwork) == (family == "mistral")
    for chunks in (
        [Chunk(0, 0, IDS[:30], 1), Chunk(3, 0, IDS[40:60], 1)],  # too long for a recording
        [Chunk(3, 20, IDS[60:61], 1), Chunk(0, 30, IDS[30:33], 3)],
        [Chunk(0, 32, IDS[50:52], 2)],  # what was rejected is overwritten
    ):
        expected, found = plain.forward(chunks), recorded.forward(chunks)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other.cpu(), one, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("with_kernels")
def test_without_kernels_torch_attends(
    tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Tensor:
        raise OSError("no C compiler")

    monkeypatch.setattr(kernels, "attend", refuse)
    recorded = recorded_engine(tiny_models("gpt_neox"))
    assert recorded.graphs is not None
    assert recorded.graphs.kernels is None
