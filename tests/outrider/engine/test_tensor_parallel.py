"""What is refused before any rank loads. `tests/system/tools` has two ranks that run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig

from outrider.engine import tensor_parallel
from outrider.engine.tensor_parallel import Ranks
from outrider.errors import ConfigurationError, UnsupportedModel


@pytest.fixture
def first_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is rank 0 of two; the other one is not there."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    alone = SimpleNamespace(init_process_group=lambda *_: None, new_group=lambda **_: None)
    monkeypatch.setattr(tensor_parallel, "dist", alone)


def test_processes_are_started_by_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigurationError, match="torchrun --nproc-per-node 2"):
        Ranks(2, "cpu")


@pytest.mark.usefixtures("first_of_two")
def test_each_has_a_device_that_it_finds_itself() -> None:
    with pytest.raises(ConfigurationError, match="--device is auto, cpu or cuda"):
        Ranks(2, "cuda:1")


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2Config(), "gpt2: no plan for tensor parallelism"),
        (
            LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=3),
            "3 key-value heads cannot",
        ),
    ],
)
def test_a_model_that_cannot_be_parted_is_refused(config: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        Ranks(2, "cpu").loading(config)
