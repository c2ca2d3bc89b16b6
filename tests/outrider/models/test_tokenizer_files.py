from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from orchestrator.text.tokenizer import Tokenizer
from outrider.errors import ModelNotFound, UnsupportedModel
from outrider.models.tokenizer_files import (
    check_vocabulary,
    chunks,
    from_bytes,
    load_tokenizer,
    read_tokenizer,
    to_bytes,
    turn_end_ids,
    vocabulary_fingerprint,
)
from outrider.protocol.messages import TokenizerFiles
from tests.support.models.tiny_tokenizers import TEXT, make_tokenizer


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


# "\n\n" and numbers of any length are pieces, and tabs stay together, as in no class that follows.
SPLIT = r"\n+|\t+|\p{N}+| ?\p{L}+|[^\s\p{L}\p{N}]+|\s"
SAMPLES = (
    "\n\nhello",
    "2023 650841823",
    "def f(x):\n\t\tif x:\n\t\t\treturn 2023",
    " \u00e9  e\u0301<|im_end|>\n\n",
)


def write_tokenizer(folder: Path, model_type: str, class_name: str, **settings: object) -> Backend:
    """A tokenizer.json beside a class that splits in another way; returns what is in the file."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT, *SAMPLES * 9], trainer)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    settings |= {"tokenizer_class": class_name, "eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return backend


@pytest.mark.parametrize(
    ("model_type", "class_name"),
    [
        ("llama", "GPT2Tokenizer"),
        ("llama", "Qwen2Tokenizer"),
        ("llama", "LlamaTokenizerFast"),
        ("llama", "CodeLlamaTokenizerFast"),
        ("llama", "GemmaTokenizerFast"),
        ("llama", "NoSuchTokenizer"),
        ("starcoder2", "GPT2Tokenizer"),
        ("qwen2", "Qwen2Tokenizer"),
        ("qwen2", "PreTrainedTokenizerFast"),
        ("qwen3", "GPT2Tokenizer"),
        ("gemma3_text", "GemmaTokenizer"),
        ("mistral", "LlamaTokenizer"),
        ("none such", "PreTrainedTokenizerFast"),
    ],
)
def test_what_tokenizer_json_says_is_as_it_says(
    tmp_path: Path, model_type: str, class_name: str
) -> None:
    stored = write_tokenizer(tmp_path, model_type, class_name, add_bos_token=True)
    tokenizer = Tokenizer(read_tokenizer(str(tmp_path)))
    for sample in SAMPLES:
        ids = tokenizer.encode(sample)
        assert ids == stored.encode(sample).ids
        assert tokenizer.decode(ids) == sample.replace("<|im_end|>", "")
    assert len(tokenizer.encode("2023")) == len(tokenizer.encode("\n\n")) == 1


def test_tokens_that_only_its_config_adds_are_there(tmp_path: Path) -> None:
    stored = write_tokenizer(tmp_path, "llama", "LlamaTokenizer", pad_token="<pad>")
    tokenizer = Tokenizer(read_tokenizer(str(tmp_path)))
    assert tokenizer.encode("<pad>") == [stored.get_vocab_size()]


def test_a_saved_copy_says_the_same(tmp_path: Path) -> None:
    stored = write_tokenizer(tmp_path, "llama", "GPT2Tokenizer", add_bos_token=True)
    load_tokenizer(tmp_path).save_pretrained(tmp_path / "copy")
    copy = Tokenizer(read_tokenizer(str(tmp_path / "copy")))
    assert [copy.encode(s) for s in SAMPLES] == [stored.encode(s).ids for s in SAMPLES]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ("<|im_end|>\n", (2,)),
        (" <|im_end|>", (2,)),
        ("{{ eos_token }}", (2,)),
        ("\n", ()),
        ("the end", ()),
    ],
)
def test_what_ends_a_turn(files: TokenizerFiles, ends: str, expected: tuple[int, ...]) -> None:
    template = "{% for m in messages %}" + "{{ m.content }}" + ends + "{% endfor %}"
    assert turn_end_ids(replace(files, chat_template=template)) == expected
    assert turn_end_ids(replace(files, chat_template=None)) == ()


def test_a_tokenizer_of_another_model_is_refused(files: TokenizerFiles) -> None:
    size = Backend.from_str(files.tokenizer_json).get_vocab_size()
    check_vocabulary("mine", files, size)
    with pytest.raises(ModelNotFound, match=f"'mine'.*{size} tokens.*{size - 1}"):
        check_vocabulary("mine", files, size - 1)
    backend = Backend.from_str(files.tokenizer_json)
    backend.add_tokens(["[PAD]"])
    check_vocabulary("mine", replace(files, tokenizer_json=backend.to_str()), size)


def test_a_tokenizer_without_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").touch()
    with pytest.raises(ModelNotFound, match="it has 0 tokens"):
        check_vocabulary("mine", read_tokenizer(str(tmp_path)), 300)


def test_a_folder_without_a_tokenizer_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelNotFound, match=r"has no tokenizer: no tokenizer\.json$"):
        read_tokenizer(str(tmp_path))


def test_files_that_no_tokenizer_can_be_made_of_are_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    (tmp_path / "tekken.json").write_text("{}")
    with pytest.raises(ModelNotFound, match=r"has no tokenizer\.json, and none can be made of its"):
        read_tokenizer(str(tmp_path))


def test_a_tokenizer_without_a_fast_version_is_unsupported(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<unk>": 0, "a</w>": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "config.json").write_text('{"model_type": "ctrl"}')
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        read_tokenizer(str(tmp_path))
