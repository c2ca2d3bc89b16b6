"""The orchestrator's tokenizer against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from orchestrator.generation import Message
from orchestrator.tokenizer import Tokenizer
from outrider.errors import InvalidRequest, ModelNotFound
from outrider.tokenizer_files import (
    chunks,
    from_bytes,
    read_tokenizer,
    to_bytes,
    vocabulary_fingerprint,
)
from tests.tiny_models import CHAT_TEMPLATE, make_tokenizer

LLAMA3_LIKE = (
    "{{- bos_token }}{% for message in messages %}\n"
    "    {%- set content = '<|start|>' + message['role'] + '<|end|>\n\n' %}\n"
    "    {%- set content = content + message['content'] | trim %}\n"
    "    {{- content + eos_token }}\n"
    "{% endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
STRICT = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}"
    "{% else %}[INST] {{ message['content'] | tojson }} [/INST]{% endif %}{% endfor %}"
)
TALK = [Message("user", "what's  up? 🦊 "), Message("assistant", "<b>"), Message("user", "ok")]


@pytest.mark.parametrize("bos", [False, True])
def test_encode_equals_transformers(tmp_path: Path, bos: bool) -> None:
    make_tokenizer(tmp_path, bos=bos)
    ours, theirs = Tokenizer(read_tokenizer(str(tmp_path))), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the cat sat", "<|im_start|>x", "ünïcödé 漢字", ""):
        assert ours.encode(text) == theirs(text).input_ids


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA3_LIKE, STRICT])
@pytest.mark.parametrize("bos", [False, True])
def test_messages_equal_transformers(tmp_path: Path, template: str, bos: bool) -> None:
    make_tokenizer(tmp_path, bos=bos, template=template)
    ours, theirs = Tokenizer(read_tokenizer(str(tmp_path))), AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": turn.role, "content": turn.content} for turn in TALK]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.encode_messages(TALK) == expected


def test_a_template_that_refuses_is_the_callers_error(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, template=STRICT)
    tokenizer = Tokenizer(read_tokenizer(str(tmp_path)))
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        tokenizer.encode_messages([Message("assistant", "first")])


def test_without_a_template_messages_are_refused(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, template=None)
    tokenizer = Tokenizer(read_tokenizer(str(tmp_path)))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match="prompt"):
        tokenizer.encode_messages(TALK)


def test_truncation_saved_with_a_tokenizer_is_off(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    files = read_tokenizer(str(tmp_path))
    document = json.loads(files.tokenizer_json)
    document["truncation"] = {
        "max_length": 3,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    truncating = type(files)(json.dumps(document), None, {})
    text = "a text of more than three tokens"
    assert Tokenizer(truncating).encode(text) == Tokenizer(files).encode(text)


def test_a_tokenizer_survives_its_journey(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    files = read_tokenizer(str(tmp_path))
    data = to_bytes(files)
    pieces = chunks(data, size=1000)
    assert max(map(len, pieces)) <= 1000
    arrived = from_bytes(b"".join(pieces))
    assert arrived.chat_template == files.chat_template
    assert arrived.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert Tokenizer(arrived).encode("ünï") == Tokenizer(files).encode("ünï")


def test_the_fingerprint_is_of_the_vocabulary_alone(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "a")
    make_tokenizer(tmp_path / "b", bos=True, template=None)
    make_tokenizer(tmp_path / "c", text="quite another text makes quite other merges")
    a, b, c = (
        vocabulary_fingerprint(read_tokenizer(str(tmp_path / name)).tokenizer_json)
        for name in "abc"
    )
    assert a == b != c


def test_a_folder_without_a_tokenizer_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_tokenizer(str(tmp_path / "nothing"))
