"""Converts a GGUF file to a folder for transformers."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from outrider.errors import ModelNotFound, OutriderError, UnsupportedModel, install_hint
from outrider.gguf.families import (
    ROPE_FACTORS,
    Family,
    family_of,
    llama3_scaling,
    name_of,
    settings_of,
)
from outrider.gguf.tokenizer import read_tokenizer

_SHARD_BYTES = 4 << 30
# Keys with long values, which the tokenizer reads itself.
_LISTS = ("tokens", "merges", "scores", "token_type")


def convert(source: Path, folder: Path, eos_token_ids: Sequence[int] = ()) -> None:
    """Writes the model and the tokenizer of the GGUF file `source` to `folder`.

    Quantised weights become float16, others stay as precise as they are.

    Args:
        eos_token_ids: tokens that end a text, in place of those that the file names.

    Raises:
        ModelNotFound: the file cannot be read, or is incomplete.
        UnsupportedModel: its family, a setting, a tensor or the tokenizer is unknown.
        OSError: `folder` cannot be written.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelNotFound(
            f"GGUF files are read with a package more; {install_hint('embedded')}"
        ) from error
    try:
        _convert(GGUFReader(source), source, folder, eos_token_ids)
    except OutriderError as error:
        raise type(error)(f"{source}: {error.message}") from error
    except SafetensorError as error:
        raise OSError(str(error)) from error
    except OSError as error:
        if error.filename is not None and Path(error.filename) == source:
            raise ModelNotFound(f"cannot read {source}: {error.strerror}") from error
        raise
    except (AttributeError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelNotFound(f"cannot read {source}: {error}") from error


def _convert(reader: Any, source: Path, folder: Path, eos_token_ids: Sequence[int]) -> None:
    metadata = {
        key: value.contents()
        for key, value in reader.fields.items()
        if not key.endswith(tuple(f"tokenizer.ggml.{name}" for name in _LISTS))
    }
    if metadata.get("split.count", 1) > 1:
        raise UnsupportedModel("it is one of several files, which are to be merged first")
    architecture = metadata["general.architecture"]
    family = family_of(architecture)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    settings = settings_of(family, architecture, metadata)
    if ROPE_FACTORS in tensors and family.model_type == "llama":
        settings["rope_scaling"] = llama3_scaling(
            _values(tensors.pop(ROPE_FACTORS)), settings["rope_theta"], settings["head_dim"]
        )
    config = _config(family, settings, tensors, metadata)
    tokenizer = read_tokenizer(source, metadata)
    config.architectures = [_check_whole(config, tensors, family)]
    _write_weights(_weights(tensors, family, config), folder)
    config.save_pretrained(folder)
    _generation_config(metadata, eos_token_ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(
    family: Family, settings: dict[str, Any], tensors: Mapping[str, Any], metadata: dict[str, Any]
) -> Any:
    vocab_size = int(tensors["token_embd.weight"].shape[1])
    ids = {
        f"{name}_token_id": metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    config = AutoConfig.for_model(
        family.model_type,
        **settings,
        **ids,
        vocab_size=vocab_size,
        tie_word_embeddings="output.weight" not in tensors,
        dtype=dtype_of(tensors),
    )
    if hasattr(config, "attention_bias"):
        config.attention_bias = "blk.0.attn_q.bias" in tensors
    return config


def dtype_of(tensors: Mapping[str, Any]) -> torch.dtype:
    """The dtype that holds all matrices as precisely as the file, or float16 for quantised ones.

    Vectors take it, too: quantised files have them in float32, whatever the model had.
    """
    kinds = {tensor.tensor_type.name for tensor in tensors.values() if len(tensor.shape) > 1}
    if "F32" in kinds or (len(kinds) > 1 and "BF16" in kinds):
        return torch.float32
    # A Q4_1 weight is `scale * q + minimum`. float16 rounds it in 42 % of the weights, by
    # far less than a step of the 4 bits, and is what the engine multiplies fastest.
    return torch.bfloat16 if kinds == {"BF16"} else torch.float16


def _check_whole(config: Any, tensors: Mapping[str, Any], family: Family) -> str:
    """Checks that the file has just the weights of the model; returns the model's class."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    given = {name_of(t.name, family): t.shape.tolist()[::-1] for t in tensors.values()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise ModelNotFound(
                f"its weights {name} are {given.get(name, 'missing')}, "
                f"and should be {expected.get(name, 'none')}"
            )
    return type(model).__name__


def _weights(
    tensors: Mapping[str, Any], family: Family, config: Any
) -> Iterator[tuple[str, Tensor]]:
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for tensor in tensors.values():
        values = _values(tensor)
        kind = tensor.name.split(".")[-2]
        if family.interleaves and kind in heads:
            values = _in_halves(values, heads[kind])
        if kind.endswith("_norm"):
            values = values - np.float32(family.norm_offset)
        weights = torch.from_numpy(np.ascontiguousarray(values)).to(config.dtype)
        if not weights.isfinite().all():
            raise UnsupportedModel(f"its tensor {tensor.name} is not finite in {config.dtype}")
        yield name_of(tensor.name, family), weights


def _values(tensor: Any) -> NDArray[np.float32]:
    from gguf import dequantize

    return np.array(dequantize(tensor.data, tensor.tensor_type), np.float32)


def _in_halves(values: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Reorders rows of heads from 0, h, 1, h + 1, ... to 0, 1, ..., h, h + 1, ..."""
    pairs = values.reshape(num_heads, len(values) // num_heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _write_weights(weights: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(weights), start=1):
        file = f"model-{number:05}.safetensors"
        save_file(shard, folder / file, {"format": "pt"})
        places |= dict.fromkeys(shard, file)
    if len(set(places.values())) == 1:
        (folder / file).rename(folder / "model.safetensors")
        return
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index)


def _shards(weights: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Splits weights into files whose size fits the memory."""
    shard: dict[str, Tensor] = {}
    for name, tensor in weights:
        shard[name] = tensor
        if sum(one.nbytes for one in shard.values()) > _SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard


def _generation_config(metadata: Mapping[str, Any], eos_token_ids: Sequence[int]) -> Any:
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    eos = eos_token_ids or [one for one in dict.fromkeys(named) if one is not None]
    return GenerationConfig(
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=list(eos) or None,
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
    )
