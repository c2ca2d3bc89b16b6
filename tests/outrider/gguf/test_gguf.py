"""GGUF files become the models that they were made of, or are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from orchestrator.text.tokenizer import Tokenizer
from outrider.embedded import resolve_model
from outrider.engine.loading.weights import load_model
from outrider.errors import ModelNotFound, UnsupportedModel
from outrider.gguf.convert import convert, dtype_of
from outrider.gguf.families import llama3_scaling
from outrider.gguf.tokenizer import SPLITTINGS
from outrider.gguf.tokenizer import read_tokenizer as read_gguf_tokenizer
from outrider.models.tokenizer_files import read_tokenizer
from tests.support.models.gguf_files import write_gguf
from tests.support.models.tiny_models import make_model
from tests.support.models.tiny_tokenizers import TEXT, make_tokenizer, sentencepiece

TIED = {"tie_word_embeddings": True}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "qwen2": ("qwen2", TIED),
    "qwen3": ("qwen3", {}),
    # Local and global layers, and queries that are not scaled as by default.
    "gemma3": ("gemma3", {"num_hidden_layers": 6, "query_pre_attn_scalar": 16}),
}


def convert_to(folder: Path, file: Path) -> Path:
    folder.mkdir()
    convert(file, folder)
    return folder


@pytest.fixture
def llama(tiny_models: Callable[..., Path]) -> Path:
    return tiny_models("llama")


@pytest.mark.parametrize("architecture", SOURCES)
def test_a_file_becomes_the_model_that_it_was_made_of(architecture: str, tmp_path: Path) -> None:
    family, settings = SOURCES[architecture]
    model = make_model(tmp_path / "model", family, **settings)
    for path in sorted(tmp_path.glob("model/*.safetensors")):  # norms that are not all ones
        weights = load_file(path)
        torch.manual_seed(0)
        for tensor in weights.values():
            if tensor.ndim == 1:
                tensor += 0.5 * torch.rand_like(tensor)
        save_file(weights, path, {"format": "pt"})
    file = write_gguf(tmp_path / "model.gguf", model, architecture)
    (tmp_path / "tokenizer.json").write_text(
        sentencepiece(True).to_str()
    )  # another model's, in the same folder
    folder = convert_to(tmp_path / "converted", file)
    ids = torch.arange(40)[None] * 7 % 300
    expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(ids).logits
    actual = load_model(str(folder), torch.device("cpu"), torch.float32)(ids).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    tokenizer, original = Tokenizer(read_tokenizer(str(folder))), read_tokenizer(str(model))
    texts = ("the cat sat", "<|im_start|>x<|im_end|>", "ünïcödé 漢字  12")
    for text in texts if architecture != "gemma3" else ():  # whose tokenizer is another kind
        assert tokenizer.encode(text) == Tokenizer(original).encode(text)
        assert tokenizer.decode(tokenizer.encode("the  cat")) == "the  cat"
    assert tokenizer.has_chat_template


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("Q8_0", torch.float16), ("Q4_0", torch.float16), ("F16", torch.float16),
     ("BF16", torch.bfloat16), ("F32", torch.float32)],
)  # fmt: skip
def test_weights_are_as_precise_as_in_the_file(
    llama: Path, tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    file = write_gguf(tmp_path / "a.gguf", llama, "llama", kind=GGMLQuantizationType[kind])
    weights = load_file(convert_to(tmp_path / "a", file) / "model.safetensors")
    original = load_file(llama / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    for name, tensor in weights.items():
        loss = (tensor.float() - original[name]).abs().max() / original[name].abs().max()
        assert loss < {"Q4_0": 0.13, "Q8_0": 0.01, "BF16": 0.01}.get(kind, 0.001), name


def test_a_file_of_several_kinds_loses_nothing(llama: Path, tmp_path: Path) -> None:
    kinds = {"a": "BF16", "b": "F16", "c": "Q8_0", "norm": "F32"}
    tensors = {
        name: SimpleNamespace(
            tensor_type=GGMLQuantizationType[kind], shape=[3] * (1 + (name != "norm"))
        )
        for name, kind in kinds.items()
    }
    norm = tensors["norm"]
    for of_matrices, dtype in (
        ("ab", torch.float32),
        ("ac", torch.float32),
        ("bc", torch.float16),
        ("a", torch.bfloat16),
    ):
        assert dtype_of({name: tensors[name] for name in of_matrices} | {"norm": norm}) == dtype


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("smollm", "Ideas:\n\n1. Go", ["Ideas", ":", "ĊĊ", "1", ".", "ĠGo"]),
        ("smollm", "[  12]", ["[", "ĠĠ", "1", "2", "]"]),
        ("gpt-2", "[  12]\n\nx", ["[", "Ġ", "Ġ12", "]", "Ċ", "Ċ", "x"]),
        ("llama-bpe", "it's  1234\n\nx", ["it", "'s", "Ġ", "Ġ", "123", "4", "ĊĊ", "x"]),
        ("qwen2", "it's 12:\n\nx", ["it", "'s", "Ġ", "1", "2", ":ĊĊ", "x"]),
        ("qwen2", "e\u0301", ["Ã©"]),  # composed, as Qwen's tokenizer does
        ("tekken", "fooBar 12/\n", ["foo", "Bar", "Ġ", "1", "2", "/Ċ"]),
    ],
)
def test_texts_are_split_as_pre_tokenizers_say(pre: str, text: str, tokens: list[str]) -> None:
    tokenizer = Backend.from_str('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    SPLITTINGS[pre].apply(tokenizer)
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized)]
    assert pieces == tokens


def test_a_sentencepiece_vocabulary_is_read_as_llama_2_has_it(llama: Path, tmp_path: Path) -> None:
    stored = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    stored.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    stored.train_from_iterator(TEXT.splitlines(), trainer)
    vocab = sorted(stored.get_vocab(), key=stored.token_to_id)
    tokens = [*vocab[:3], *bytes_, *vocab[3:]]
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    kinds = [TokenType.CONTROL] * 3 + [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(vocab[3:])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = {"tokenizer.ggml.model": "llama", "general.architecture": "llama"}
    tokenizer = read_gguf_tokenizer(tmp_path / "a.gguf", metadata).backend_tokenizer
    for text in ("the cat sat", "  on the  mat", "a\n\n\tdog", "do not"):
        encoding = tokenizer.encode(text)
        expected = [one for one in stored.encode(text).tokens if one != "<unk>"]
        bytewise = [f"<0x{ord(one):02X}>" for one in text if one in "\n\t"]
        assert encoding.tokens[0] == "<s>"
        assert [t for t in encoding.tokens[1:] if t not in bytes_] == expected
        assert [t for t in encoding.tokens if t in bytes_] == bytewise
        assert tokenizer.decode(encoding.ids) == text
    assert tokenizer.encode("</s>a").tokens == ["<s>", "</s>", "▁a"]
    metadata |= {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    bare = read_gguf_tokenizer(tmp_path / "a.gguf", metadata).backend_tokenizer
    assert "".join(bare.encode("the cat").tokens) == "the▁cat"
    assert bare.decode(bare.encode(" the").ids) == " the"


def test_the_rotations_of_llama_3_are_recognised(llama: Path, tmp_path: Path) -> None:
    model = make_model(
        tmp_path / "model", "llama",
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
    )  # fmt: skip
    rotary = AutoModelForCausalLM.from_pretrained(model).model.rotary_emb
    plain = AutoModelForCausalLM.from_pretrained(llama).model.rotary_emb
    base = 500_000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = (base / rotary.inv_freq).numpy().astype(np.float32)
    assert not torch.equal(rotary.inv_freq, plain.inv_freq)
    file = write_gguf(tmp_path / "a.gguf", model, "llama", tensors={"rope_freqs.weight": factors})
    config = AutoConfig.from_pretrained(convert_to(tmp_path / "a", file))
    assert config.rope_parameters == AutoConfig.from_pretrained(model).rope_parameters
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight"):
        llama3_scaling(factors * 1.1, 500_000.0, 16)


def test_linear_rope_is_taken_over(llama: Path, tmp_path: Path) -> None:
    settings = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    file = write_gguf(tmp_path / "a.gguf", llama, "llama", settings)
    rope = AutoConfig.from_pretrained(convert_to(tmp_path / "a", file)).rope_parameters
    assert (rope["rope_type"], rope["factor"]) == ("linear", 4.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"settings": {"llama.expert_count": 8}}, "setting llama.expert_count is not known"),
        ({"settings": {"llama.rope.scaling.type": "longrope"}}, "scaling.type 'longrope'"),
        ({"settings": {"llama.rope.dimension_count": 8}}, "rope.dimension_count is 8, not 16"),
        ({"settings": {"llama.block_count": None}}, "does not say its num_hidden_layers"),
        ({"settings": {"llama.block_count": 1}}, "layers.1.input_layernorm.weight are [64]"),
        ({"settings": {"llama.block_count": 3}}, "layers.2.input_layernorm.weight are missing"),
        ({"settings": {"split.count": 2}}, "one of several files"),
        ({"tensors": {"blk.0.ffn_up.weight": None}}, "layers.0.mlp.up_proj.weight are missing"),
        ({"tensors": {"blk.0.ffn_gate_inp.weight": np.ones((2, 2), np.float32)}}, "ffn_gate_inp"),
        ({"pre": "viking"}, "pre-tokenizer 'viking' is not known"),
        ({"pre": "default"}, "pre-tokenizer 'default' is not known"),
        ({"pre": None}, "pre-tokenizer None is not known"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(
    llama: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    file = write_gguf(tmp_path / "a.gguf", llama, "llama", **changes)
    with pytest.raises((UnsupportedModel, ModelNotFound)) as raised:
        convert_to(tmp_path / "a", file)
    assert raised.value.message.startswith(f"{file}: it")
    assert expected in raised.value.message


def test_another_family_is_refused_by_name(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    writer = GGUFWriter(tmp_path / "a.gguf", "rwkv7")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match="'rwkv7' are not served, only of llama"):
        convert_to(tmp_path / "a", tmp_path / "a.gguf")


def test_a_file_is_converted_once(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "mine.gguf", llama, "llama")
    progress: list[str] = []
    folder = resolve_model(str(file), progress.append)
    assert resolve_model(str(file), progress.append) == folder
    assert [line.split(":")[0] for line in progress] == ["mine.gguf"]
    assert (Path(folder) / "model.safetensors").is_file()
    file.write_bytes(file.read_bytes() + b"more")
    assert resolve_model(str(file)) != folder


@pytest.mark.parametrize("content", [b"", b"no GGUF file, but a long text " * 9])
def test_a_file_that_is_no_gguf_file_is_a_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ModelNotFound, match=r"cannot read .*a\.gguf"):
        convert_to(tmp_path / "a", tmp_path / "a.gguf")
