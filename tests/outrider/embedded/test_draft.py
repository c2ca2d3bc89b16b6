"""The embedded draft: packed small, and built again from the target as it was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from outrider.embedded.draft import FILE, build, dequantized, pack, quantized
from outrider.engine.cpu.int8_linear import Int8Linear
from outrider.engine.loading.draft_vocabulary import read_draft_vocabulary, write_draft_vocabulary
from outrider.models.student import freeze, keep_layers
from outrider.models.tokenizer_files import read_tokenizer
from tests.support.models.tiny_models import make_model

VOCABULARY = [1, 3, 5, 8]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return make_model(tmp_path / "target", "llama", num_hidden_layers=3)


@pytest.fixture
def draft(target: Path, tmp_path: Path) -> Path:
    """What `outrider distill --layers 0,2 --trained-layers 1 --int8` leaves."""
    folder = tmp_path / "draft"
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    keep_layers(model, [0, 2])
    freeze(model, 1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    write_draft_vocabulary(folder, VOCABULARY)
    record = {"layers": [0, 2], "recipe": {"trained_layers": 1}}
    (folder / "distillation.json").write_text(json.dumps(record))
    return folder


def test_a_built_draft_is_what_was_packed(target: Path, draft: Path, tmp_path: Path) -> None:
    file, built = tmp_path / "draft.safetensors", tmp_path / "built"
    pack(draft, file)
    assert not [name for name in load_file(file) if "layers.0." in name or "embed" in name]
    build(file, target, built)
    assert read_draft_vocabulary(str(built)) == VOCABULARY
    actual, expected = (
        load_file(built / "model.safetensors"),
        load_file(draft / "model.safetensors"),
    )
    assert actual.keys() == expected.keys()
    for name, weight in actual.items():
        scales = expected[name].abs().amax(dim=-1, keepdim=True) / 127
        trained = "layers.1." in name and weight.ndim == 2
        assert ((weight - expected[name]).abs() <= 0.51 * scales * trained).all(), name


def test_int8_reads_the_packed_weights_without_another_rounding() -> None:
    weight = torch.randn(8, 32)
    [rounded] = dequantized(quantized({"weight": weight})).values()
    inputs = torch.eye(32)
    actual = Int8Linear(rounded, None)(inputs).t()
    torch.testing.assert_close(actual, rounded, atol=1e-5, rtol=1e-4)


def test_the_shipped_file_is_small() -> None:
    assert FILE.stat().st_size < 45e6


def test_the_shipped_draft_fits_the_target(real_target: Path, tmp_path: Path) -> None:
    build(FILE, real_target, tmp_path / "draft")
    vocabulary = read_draft_vocabulary(str(tmp_path / "draft"))
    assert vocabulary is not None
    assert len(vocabulary) == 16384
    tokenizers = [read_tokenizer(str(folder)) for folder in (tmp_path / "draft", real_target)]
    assert tokenizers[0].tokenizer_json == tokenizers[1].tokenizer_json
