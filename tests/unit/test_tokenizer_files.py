from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, ByT5Tokenizer

from orchestrator.tokenizer import Tokenizer
from outrider.errors import ModelNotFound, UnsupportedModel
from outrider.messages import TokenizerFiles
from outrider.tokenizer_files import (
    chunks,
    from_bytes,
    read_tokenizer,
    to_bytes,
    vocabulary_fingerprint,
)
from tests.tiny_models import make_tokenizer


@pytest.fixture
def files(tmp_path: Path) -> TokenizerFiles:
    make_tokenizer(tmp_path)
    return read_tokenizer(str(tmp_path))


def test_a_tokenizer_survives_its_journey(files: TokenizerFiles) -> None:
    pieces = chunks(to_bytes(files), size=1000)
    assert max(map(len, pieces)) <= 1000
    arrived = from_bytes(b"".join(pieces))
    assert arrived.chat_template == files.chat_template
    assert arrived.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert json.loads(arrived.tokenizer_json) == json.loads(files.tokenizer_json)
    assert Tokenizer(arrived).encode("ünï") == Tokenizer(files).encode("ünï")


def test_a_tokenizer_without_a_template_survives_too(files: TokenizerFiles) -> None:
    assert from_bytes(to_bytes(replace(files, chat_template=None))).chat_template is None


def test_of_several_templates_the_default_one_is_taken(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = {"default": "plain", "tool_use": "with tools"}
    tokenizer.save_pretrained(tmp_path)
    assert read_tokenizer(str(tmp_path)).chat_template == "plain"


def test_the_fingerprint_is_of_the_vocabulary_alone(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "a")
    make_tokenizer(tmp_path / "b", bos=True, template=None)
    make_tokenizer(tmp_path / "c", text="quite another text makes quite other merges")
    a, b, c = (
        vocabulary_fingerprint(read_tokenizer(str(tmp_path / name)).tokenizer_json)
        for name in "abc"
    )
    assert a == b != c


def test_the_fingerprint_ignores_how_the_file_is_written(files: TokenizerFiles) -> None:
    document = json.loads(files.tokenizer_json)
    vocab = document["model"]["vocab"]
    document["model"]["vocab"] = dict(sorted(vocab.items(), reverse=True))
    written = json.dumps(document, indent=4, ensure_ascii=True)
    assert vocabulary_fingerprint(written) == vocabulary_fingerprint(files.tokenizer_json)


def test_the_fingerprint_covers_added_tokens(files: TokenizerFiles) -> None:
    backend = Backend.from_str(files.tokenizer_json)
    backend.add_tokens(["<tool>"])
    assert vocabulary_fingerprint(backend.to_str()) != vocabulary_fingerprint(files.tokenizer_json)


def test_a_folder_without_a_tokenizer_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_tokenizer(str(tmp_path / "nothing"))


@pytest.mark.parametrize("content", ["{broken", "{}", "[]", '{"model": {"type": "Nope"}}'])
def test_a_broken_file_is_the_models_error(tmp_path: Path, content: str) -> None:
    make_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelNotFound, match="cannot load the tokenizer"):
        read_tokenizer(str(tmp_path))


def test_a_tokenizer_without_a_fast_version_is_unsupported(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        read_tokenizer(str(tmp_path))
