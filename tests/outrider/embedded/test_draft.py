"""The embedded draft: packed without the target's embedding, and built again with it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from outrider.embedded.draft import FILE, build, pack
from outrider.engine.eagle3.checkpoint import read_eagle3
from outrider.models.tokenizer_files import read_tokenizer
from tests.support.models.eagle3 import make_eagle3
from tests.support.models.tiny_models import make_model


def test_a_built_draft_is_what_was_packed(tmp_path: Path) -> None:
    target = make_model(tmp_path / "target", "llama", num_hidden_layers=4)
    draft, file, built = tmp_path / "draft", tmp_path / "draft.safetensors", tmp_path / "built"
    make_eagle3(draft)
    built.mkdir()
    pack(draft, file)
    assert "embed_tokens.weight" not in load_file(file)
    build(file, target, built)
    actual, expected = (load_file(folder / "model.safetensors") for folder in (built, draft))
    embedding = actual.pop("embed_tokens.weight")
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert torch.equal(embedding, model.get_input_embeddings().weight.half())
    del expected["embed_tokens.weight"]
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in actual)
    assert (built / "config.json").read_text() == (draft / "config.json").read_text()


def test_the_shipped_file_is_small() -> None:
    assert FILE.stat().st_size < 30e6


def test_the_shipped_draft_fits_the_target(real_target: Path, tmp_path: Path) -> None:
    build(FILE, real_target, tmp_path)
    draft = read_eagle3(str(tmp_path), torch.device("cpu"), torch.float32)
    assert draft is not None
    tokenizers = [read_tokenizer(str(folder)) for folder in (tmp_path, real_target)]
    assert tokenizers[0].tokenizer_json == tokenizers[1].tokenizer_json
