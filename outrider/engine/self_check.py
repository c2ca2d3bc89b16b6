"""Compares a model with transformers where the length of the text matters.

The effects of a sliding window, or of a length at which the rotary embedding changes, are visible
only in long texts, which take long to compare. So a model of the same family is created with random
weights, one layer of each type, and these boundaries after a few tokens.
"""

import copy
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from outrider.engine.attention.forward_pass import Pass
from outrider.engine.attention.rope import rope_of, rope_parameters
from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.chunk import Chunk, logit_rows
from outrider.engine.loading.model_config import check_chunks, check_windows
from outrider.engine.network import networks_for
from outrider.engine.shapes import ANY_SHAPES
from outrider.engine.soundness import difference
from outrider.errors import UnsupportedModel

log = logging.getLogger(__name__)

_WINDOW = 8
_ORIGINAL_LENGTH = 16
_LENGTH = 40
_VOCAB_SIZE = 64
_TOLERANCE = 1e-4

# Two texts: the length of the prompt, and of the whole. The first prompt ends where rotary
# embeddings change, the second one behind that.
_SHORT, _LONG = (10, _ORIGINAL_LENGTH), (20, _LENGTH)

_SIZES = {
    "vocab_size": _VOCAB_SIZE,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # so that attention shows in the logits
}


def check_boundaries(
    config: Any,
    windows: set[int],
    max_context_length: int,
    name: str,
    trust_remote_code: bool = False,
) -> None:
    """Compares a small model with transformers, if texts can reach a boundary of `config`.

    Args:
        windows: sliding windows that the model's layers have passed to attention.

    Raises UnsupportedModel if logits differ, or if a boundary has no effect.
    """
    check_chunks(config, max_context_length, name)
    check_windows(config, windows, max_context_length, name)
    if not _has_boundary(config, max_context_length):
        return
    from transformers import AutoModelForCausalLM  # takes 90 MB

    try:
        small = _scaled_down(config)
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(
                small,
                dtype=torch.float32,
                attn_implementation="eager",
                trust_remote_code=trust_remote_code,
            ).eval()
            expected = [_by_transformers(model, *each) for each in (_SHORT, _LONG)]
            *_, build = networks_for(small, is_whole=True, on_gpu=False)
            actual = _by_engine(build(model, 2 * _LENGTH))
    except Exception as error:
        raise UnsupportedModel(
            f"{name}: a small {config.model_type!r} with short windows cannot run ({error!r})"
        ) from error
    found = max(map(difference, actual, expected), key=lambda number: (math.isnan(number), number))
    if not found < _TOLERANCE:
        raise UnsupportedModel(
            f"{name}: behind its sliding window, or the original length of its rotary embedding, "
            f"{config.model_type!r} gives other logits on the slot cache than in transformers "
            f"(relative difference {found:.2g})"
        )


def _has_boundary(config: Any, max_context_length: int) -> bool:
    rope = rope_of(config)
    if rope.kind and rope.original_length < max_context_length:
        return True
    window = getattr(config, "sliding_window", None)
    is_used = getattr(config, "use_sliding_window", True) is not False
    return bool(window and is_used and window < max_context_length)


def _scaled_down(config: Any) -> Any:
    """A small configuration that has all boundaries in `_LENGTH` tokens."""
    small = copy.deepcopy(config)
    small.architectures = None
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    layer_types = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    sizes = {**_SIZES, "head_dim": head_dim, "hidden_size": 2 * head_dim}
    sizes |= {"intermediate_size": 4 * head_dim, "num_hidden_layers": max(2, len(layer_types))}
    if layer_types:
        sizes["layer_types"] = (layer_types * 2)[: sizes["num_hidden_layers"]]
    if getattr(config, "sliding_window", None):
        sizes["sliding_window"] = _WINDOW
    for key, value in sizes.items():
        if hasattr(config, key):
            with suppress(AttributeError):  # some are derived from others
                setattr(small, key, value)
    _shorten_ropes(small)
    return small


def _shorten_ropes(config: Any) -> None:
    """Makes rotary embeddings change at `_ORIGINAL_LENGTH`, with their scaling."""
    rope = rope_of(config)
    if rope.kind == "dynamic":
        config.max_position_embeddings = _ORIGINAL_LENGTH
    elif rope.kind == "longrope":
        ratio = config.max_position_embeddings / rope.original_length
        config.max_position_embeddings = round(ratio * _ORIGINAL_LENGTH)
        if hasattr(config, "original_max_position_embeddings"):
            config.original_max_position_embeddings = _ORIGINAL_LENGTH
        for parameters in rope_parameters(config):
            if "original_max_position_embeddings" in parameters:
                parameters["original_max_position_embeddings"] = _ORIGINAL_LENGTH


def _token_ids() -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, _VOCAB_SIZE, (_LENGTH,), generator=generator).tolist()


def _by_transformers(model: Any, prompt_length: int, length: int) -> Tensor:
    """Logits [length - prompt_length + 1, vocab_size] from the prompt's last token on."""
    ids = torch.tensor([_token_ids()])
    output = model(input_ids=ids[:, :prompt_length], use_cache=True)
    rows = [output.logits[0, -1:]]
    for place in range(prompt_length, length):
        output = model(
            input_ids=ids[:, place : place + 1],
            past_key_values=output.past_key_values,
            position_ids=torch.tensor([[place]]),
            use_cache=True,
        )
        rows.append(output.logits[0])
    return torch.cat(rows)


def _by_engine(network: Any) -> list[Tensor]:
    """The same logits of both texts, which share passes, each prompt in two chunks."""
    cache = SlotCache(2, 2 * _LENGTH)

    def run(chunks: Sequence[Chunk]) -> list[Tensor]:
        forward_pass = Pass(chunks, cache, torch.device("cpu"), ANY_SHAPES, together=False)
        ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
        rows = torch.tensor(logit_rows(chunks), dtype=torch.long)
        logits = network(torch.tensor(ids), forward_pass, rows)
        return list(logits.split([chunk.num_logits for chunk in chunks]))

    ids = _token_ids()
    texts = list(enumerate((_SHORT, _LONG)))
    for slot, (length, _) in texts:
        run([Chunk(slot, 0, ids[: length // 2], prompt_length=length)])
    first = run([_chunk(slot, ids, length // 2, length, 1, length) for slot, (length, _) in texts])
    behind = run([_chunk(slot, ids, length, end, end - length) for slot, (length, end) in texts])
    return [torch.cat(pair) for pair in zip(first, behind, strict=True)]


def _chunk(
    slot: int, ids: Sequence[int], start: int, end: int, num_logits: int, prompt_length: int = 0
) -> Chunk:
    return Chunk(slot, start, ids[start:end], num_logits, None, prompt_length)
