"""GGUF files of tiny models, as llama.cpp's converter lays them out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from transformers import AutoConfig

from outrider.gguf.families import FAMILIES


def write_gguf(
    file: Path,
    model: Path,
    architecture: str,
    settings: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray[Any, Any] | None] | None = None,
    pre: str | None = "gpt-2",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
) -> Path:
    """Writes the model in the folder `model` to `file`.

    `settings` and `tensors` replace what it has of these names, None leaves one out.
    """
    config = AutoConfig.from_pretrained(model)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    told = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": getattr(config, "head_dim", None) or 16,
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if architecture == "gemma3":
        told["attention.sliding_window"] = config.sliding_window
    writer = GGUFWriter(file, architecture)
    for key, value in {
        **{f"{architecture}.{k}": v for k, v in told.items()},
        **(settings or {}),
    }.items():
        add = {float: writer.add_float32, int: writer.add_uint32, bool: writer.add_bool}
        if value is not None:
            add.get(type(value), writer.add_string)(key, value)
    _write_tokenizer(writer, model, pre, "llama" if architecture == "gemma3" else "gpt2")
    changed = tensors or {}
    for name, values in {**_tensors(model, architecture, config), **changed}.items():
        if values is not None:
            raw = kind if values.ndim > 1 else GGMLQuantizationType.F32
            writer.add_tensor(name, quants.quantize(values, raw), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_tokenizer(writer: GGUFWriter, model: Path, pre: str | None, kind: str) -> None:
    backend = Backend.from_file(str(model / "tokenizer.json"))
    tokens = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    special = backend.get_added_tokens_decoder()
    writer.add_tokenizer_model(kind)
    writer.add_token_scores([-float(token_id) for _, token_id in tokens])
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in tokens])
    kinds = [TokenType.CONTROL if i in special else TokenType.NORMAL for _, i in tokens]
    writer.add_token_types(kinds)
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_eot_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}")


def _tensors(model: Path, architecture: str, config: Any) -> dict[str, np.ndarray[Any, Any]]:
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    family = FAMILIES[architecture]
    tensors = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        place, _, suffix = name.rpartition(".")
        if place not in names:
            _, _, number, rest = place.split(".", 3)
            [kind] = (k for k, v in family.layer.items() if v == rest)
            names[place] = f"blk.{number}.{kind}"
        values = tensor.float().numpy()
        if architecture == "llama" and names[place].endswith(("attn_q", "attn_k")):
            is_query = names[place].endswith("attn_q")
            heads = config.num_attention_heads if is_query else config.num_key_value_heads
            halves = values.reshape(heads, 2, -1, values.shape[1])  # pairs are side by side
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if names[place].endswith("_norm"):
            values = values + np.float32(family.norm_offset)
        tensors[f"{names[place]}.{suffix}"] = np.ascontiguousarray(values)
    return tensors
