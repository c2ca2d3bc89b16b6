"""The benchmark for GPUs, as far as it goes without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks import gpu
from benchmarks.support.random_models import build, pair_configs
from outrider.engine.chunk import Chunk
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from tests.outrider.engine.cuda.test_static_passes import Again

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("pair", "sizes"), [("pythia", (1.41e9, 0.162e9)), ("llama", (8.03e9, 1.236e9))]
)
def test_its_models_have_the_sizes_of_real_ones(pair: str, sizes: tuple[float, float]) -> None:
    for config, size in zip(pair_configs(pair), sizes, strict=True):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert model.num_parameters() == pytest.approx(size, rel=0.01)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_REPEATS", 3)


@pytest.mark.usefixtures("few")
def test_it_measures_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ways to run them; `test_gpu_network.py` has the others."""
    monkeypatch.setattr(gpu, "_WAYS", {"graphs": {}, "eager": {}})
    where = ["--device", "cpu", "--dtype", "float32", "--output", str(tmp_path)]
    gpu.main(["--pair", "tiny", "--parts", "passes", *where])
    result = json.loads((tmp_path / "gpu_tiny.json").read_text())
    for role in ("target", "draft"):
        found = result["passes"][role]
        assert found["texts_differ_after"] is None
        assert not found["graphs"]["recorded"]  # without CUDA
        for figures in (found[way] for way in gpu._WAYS):
            ms, over = figures["ms"], figures["over_reading_weights"]
            assert ms["1"] == pytest.approx(over["1"] * found["read_weights_ms"], rel=0.1)


@pytest.mark.usefixtures("few")
def test_it_measures_choices(tiny_models: Callable[..., Path]) -> None:
    engine = Engine(EngineOptions(str(tiny_models("gpt_neox")), "cpu", "float32", slots=2))
    engine.use_graphs(Again)
    engine.use_choices()
    found = gpu.spec(engine, read_ms=0.1)
    assert gpu.chosen_text(engine) == gpu.greedy_text(engine)
    for figures in found.values():
        assert len(figures["ms"]) == len(gpu.WIDTHS) + 1
        for name, ms in figures["ms"].items():
            assert ms == pytest.approx(0.1 * figures["over_reading_weights"][name], abs=1e-3)


class Network(nn.Module):
    def __init__(self, is_tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.layer = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 10, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight


@pytest.mark.parametrize("is_tied", [False, True])
def test_of_an_embedding_and_a_head_a_pass_reads_the_head(is_tied: bool) -> None:
    engine: Any = SimpleNamespace(network=Network(is_tied), vocab_size=10)
    assert gpu.bytes_read(engine) == 4 * (4 * 4 + 10 * 4)


@pytest.mark.parametrize("pair", ["tiny", "llama"])
def test_texts_to_replay_do_not_hang_on_the_shape_of_a_pass(pair: str, tmp_path: Path) -> None:
    """Else what is replayed would soon not be what the target says."""
    config, _ = pair_configs(pair)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 500}
    config.update({**sizes, "num_hidden_layers": 2, "head_dim": 16})
    config.update({"num_attention_heads": 4, "num_key_value_heads": 2})
    folder = build(config, tmp_path, "bfloat16", "cpu", name="target", decides=True)
    engine = Engine(EngineOptions(folder, "cpu", "bfloat16", slots=2))
    tokens = [*range(200, 240)]
    [wide] = engine.forward([Chunk(0, 0, tokens, len(tokens))])
    assert wide.argmax(-1).tolist() == [token + 1 for token in tokens]
    best, second = wide.float().topk(2).values.unbind(-1)
    assert (best > 1.5 * second).all()
