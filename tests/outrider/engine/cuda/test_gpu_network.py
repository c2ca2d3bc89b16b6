"""The layers for GPUs, as torch computes them anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from outrider.engine.attention.rope import Rotation
from outrider.engine.chunk import Chunk
from outrider.engine.cuda.gpu_network import GpuNetwork
from outrider.engine.engine import Engine
from outrider.engine.network import TransformersNetwork
from outrider.engine.options import EngineOptions
from outrider.errors import UnsupportedModel
from tests.outrider.engine.cuda.test_static_passes import IDS, Again, engine_of

pytestmark = pytest.mark.usefixtures("as_on_a_gpu")


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", "float32"),
        ("llama", "bfloat16"),
        ("qwen2", "float16"),
        ("gpt_neox", "float32"),
        ("gpt_neox", "float16"),
    ],
)
def test_they_give_what_transformers_layers_give(
    family: str, dtype: str, tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each precision: nothing else is used where the comparison at load fails."""
    options = EngineOptions(str(tiny_models(family)), "cpu", dtype, slots=2, max_context_length=64)
    engine = Engine(options)
    assert isinstance(engine.network, GpuNetwork)
    engine.use_graphs(Again)
    assert engine.graphs is not None
    engine.use_choices()
    assert engine.choices is not None
    monkeypatch.setattr("outrider.engine.cuda.gpu_network.gpu_networks", lambda config: [])
    other = Engine(options)
    assert isinstance(other.network, TransformersNetwork)
    for chunks in ([Chunk(0, 0, IDS[:20], 1), Chunk(1, 0, IDS[:9], 9)], [Chunk(0, 20, IDS[:3], 3)]):
        for found, expected in zip(engine.forward(chunks), other.forward(chunks), strict=True):
            scale = float(expected.float().std())
            worst = float((found - expected).abs().max()) / scale
            assert worst < {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.4}[dtype]


@pytest.mark.parametrize("settings", [{"use_parallel_residual": False}, {"hidden_act": "relu"}])
def test_other_layers_are_transformers(
    settings: dict[str, Any], tiny_models: Callable[..., Path]
) -> None:
    network = engine_of(tiny_models("gpt_neox", **settings)).network
    assert isinstance(network, TransformersNetwork)


def test_a_network_that_gives_other_logits_is_not_used(
    tiny_models: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert isinstance(engine_of(tiny_models("gpt_neox")).network, GpuNetwork)
    monkeypatch.setattr(Rotation, "rotate", lambda self, heads: heads)
    assert isinstance(engine_of(tiny_models("gpt_neox")).network, TransformersNetwork)
    assert "gives other logits" in caplog.text


def test_a_model_that_does_not_run_is_refused(
    tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ImportError("no kernels for its layers")

    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", fail)
    with pytest.raises(UnsupportedModel, match="no kernels for its layers"):
        engine_of(tiny_models("llama"))


def test_the_benchmark_compares_other_layers(
    tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_REPEATS", 3)
    found = gpu.passes(str(tiny_models("gpt_neox")), "float32", "cpu")
    networks = {way: found[way]["network"] for way in gpu._WAYS}
    assert networks.pop("graphs_without_our_layers") == "TransformersNetwork"
    assert set(networks.values()) == {"GpuNetwork"}
    assert found["texts_differ_after"] is None
