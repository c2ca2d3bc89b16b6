"""The orchestrator's tokenizer against transformers' own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from orchestrator.text.conversation import Message
from orchestrator.text.tokenizer import Tokenizer
from outrider.errors import BrokenChatTemplate, InvalidRequest, UnsupportedModel
from outrider.models.tokenizer_files import read_tokenizer
from outrider.protocol.messages import TokenizerFiles
from tests.support.models.tiny_tokenizers import CHAT_TEMPLATE, make_tokenizer

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
# Asks for tools and documents without asking first whether they are defined.
TOOLS = (
    "{% if tools is not none or documents is not none %}[TOOLS]{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}{% continue %}{% endif %}"
    "{{ message | tojson(indent=1, sort_keys=true, separators=(',', ': ')) }}"
    "{{ message['content'] | tojson(ensure_ascii=true) }}{{ pad_token }}{% endfor %}"
)
TALK = [Message("user", "what's  up? 🦊 "), Message("assistant", "<b>"), Message("user", "ok")]


@pytest.fixture
def files(tmp_path: Path) -> TokenizerFiles:
    make_tokenizer(tmp_path)
    return read_tokenizer(str(tmp_path))


@pytest.mark.parametrize("bos", [False, True])
def test_encode_equals_transformers(tmp_path: Path, bos: bool) -> None:
    make_tokenizer(tmp_path, bos=bos)
    ours, theirs = (
        Tokenizer(read_tokenizer(str(tmp_path))),
        PreTrainedTokenizerFast.from_pretrained(tmp_path),
    )
    for text in ("the cat sat", "<|im_start|>x", "ünïcödé 漢字", ""):
        assert ours.encode(text) == theirs(text).input_ids
    assert (ours.encode("x")[0] == 1) == bos


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA3_LIKE, STRICT, TOOLS])
@pytest.mark.parametrize("bos", [False, True])
def test_messages_equal_transformers(tmp_path: Path, template: str, bos: bool) -> None:
    make_tokenizer(tmp_path, bos=bos, template=template)
    ours, theirs = (
        Tokenizer(read_tokenizer(str(tmp_path))),
        PreTrainedTokenizerFast.from_pretrained(tmp_path),
    )
    messages = [{"role": turn.role, "content": turn.content} for turn in TALK]
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ours.encode_messages(TALK) == expected


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LLAMA3_LIKE, STRICT])
@pytest.mark.parametrize("content", ["Sure", "Sure: ", " a\nb"])
def test_a_continued_message_equals_transformers(
    tmp_path: Path, template: str, content: str
) -> None:
    make_tokenizer(tmp_path, template=template)
    ours, theirs = (
        Tokenizer(read_tokenizer(str(tmp_path))),
        PreTrainedTokenizerFast.from_pretrained(tmp_path),
    )
    turns = [*TALK, Message("assistant", content)]
    expected = theirs.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns],
        continue_final_message=True,
    )["input_ids"]
    assert ours.encode_messages(turns, continues_last=True) == expected


def test_a_template_can_write_the_date(files: TokenizerFiles) -> None:
    tokenizer = Tokenizer(
        replace(files, chat_template="{{ strftime_now('%Y') }}{{ messages[2].content }}")
    )
    assert tokenizer.decode(tokenizer.encode_messages(TALK)).removesuffix("ok").isdigit()


def test_a_template_that_refuses_is_the_callers_error(files: TokenizerFiles) -> None:
    tokenizer = Tokenizer(replace(files, chat_template=STRICT))
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        tokenizer.encode_messages([Message("assistant", "first")])


@pytest.mark.parametrize(
    "template",
    [
        "{% nope %}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[7]['content'] }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}",
    ],
)
def test_a_broken_template_leaves_prompts_alone(files: TokenizerFiles, template: str) -> None:
    tokenizer = Tokenizer(replace(files, chat_template=template))
    assert tokenizer.has_chat_template
    with pytest.raises(BrokenChatTemplate, match="chat template is broken"):
        tokenizer.encode_messages(TALK)
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"


def test_without_a_template_messages_are_refused(files: TokenizerFiles) -> None:
    tokenizer = Tokenizer(replace(files, chat_template=None))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequest, match="prompt"):
        tokenizer.encode_messages(TALK)


def test_truncation_and_padding_saved_with_a_tokenizer_are_off(files: TokenizerFiles) -> None:
    backend = Backend.from_str(files.tokenizer_json)
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    saved = backend.to_str()
    assert json.loads(saved)["truncation"]
    assert json.loads(saved)["padding"]
    text = "a text of more than three tokens"
    ids = Tokenizer(replace(files, tokenizer_json=saved)).encode(text)
    assert ids == Tokenizer(files).encode(text)
    assert 3 < len(ids) < 50


def test_special_and_unknown_ids_have_no_text(files: TokenizerFiles) -> None:
    tokenizer = Tokenizer(files)
    beyond = len(tokenizer.vocab)
    for token_id in (0, 1, 2, beyond):
        assert not tokenizer.has_text(token_id)
        assert tokenizer.decode([token_id]) == ""
    assert all(tokenizer.has_text(token_id) for token_id in range(3, beyond))


def test_the_fewest_tokens_are_never_more_than_there_are(files: TokenizerFiles) -> None:
    tokenizer = Tokenizer(files)
    longest = max(tokenizer.vocab, key=len)
    for text in ("", "the cat sat on the mat", longest * 50, "漢字🦊" * 9):
        assert tokenizer.fewest_tokens(text) <= len(tokenizer.encode(text))
    assert tokenizer.fewest_tokens("cat " * 1000) > 0


def test_a_tokenizer_of_another_release_is_refused_in_words(files: TokenizerFiles) -> None:
    document = json.loads(files.tokenizer_json)
    document["model"]["type"] = "Later"
    with pytest.raises(UnsupportedModel, match=r"tokenizers \S+ cannot read the tokenizer: "):
        Tokenizer(replace(files, tokenizer_json=json.dumps(document)))
