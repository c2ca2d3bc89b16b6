"""Limits on texts that follow from a model's configuration."""

import logging
from typing import Any

from outrider.engine.attention.rope import longest_text
from outrider.errors import ConfigurationError, UnsupportedModel

log = logging.getLogger(__name__)

DEFAULT_MAX_CONTEXT_LENGTH = 2048
_SHORTEST_CONTEXT_LENGTH = 2


def context_length(config: Any, wanted: int | None, is_draft: bool = False) -> int:
    """The length of a slot, in tokens.

    If a draft's model supports less than `wanted`, the result is what it supports; longer texts
    continue without the draft.

    Raises ConfigurationError if a target's model supports less, or the length is too small.
    """
    longest = longest_text(config)
    if wanted is None:
        return min(longest or DEFAULT_MAX_CONTEXT_LENGTH, DEFAULT_MAX_CONTEXT_LENGTH)
    if longest is not None and wanted > longest:
        if not is_draft:
            raise ConfigurationError(
                f"the model's context is {longest} tokens; {wanted} are too many"
            )
        log.info("the draft's context is %d tokens, less than %d", longest, wanted)
        return longest
    if wanted < _SHORTEST_CONTEXT_LENGTH:
        raise ConfigurationError(f"a context of {wanted} has no room for a prompt and an answer")
    return wanted


def check_layers(config: Any, num_cached: int, family: str) -> None:
    """Raises UnsupportedModel for layers that keep state outside of the slot cache."""
    if num_cached != config.num_hidden_layers:
        raise UnsupportedModel(
            f"{family} has layers that do not use the slot cache "
            f"({num_cached} of {config.num_hidden_layers} do)"
        )


def check_windows(config: Any, seen: set[int], max_context_length: int, name: str) -> None:
    """Raises UnsupportedModel for a sliding window that layers do not pass to attention, if the
    context exceeds it."""
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return
    if window < max_context_length and window not in seen:
        raise UnsupportedModel(
            f"{name}: its sliding window of {window} tokens is supported only up to "
            f"--max-context-length {window}"
        )


def check_chunks(config: Any, max_context_length: int, name: str) -> None:
    """Raises UnsupportedModel if the context is so long that attention is in chunks of positions.

    Llama 4 does that, and scales the queries of layers without rotary embeddings by position.
    """
    chunk = getattr(config, "attention_chunk_size", None)
    layer_types = getattr(config, "layer_types", None) or ["chunked_attention"]
    if chunk and chunk < max_context_length and "chunked_attention" in layer_types:
        raise UnsupportedModel(
            f"{name}: its attention within chunks of {chunk} tokens is supported only up to "
            f"--max-context-length {chunk}"
        )
    scale = getattr(config, "floor_scale", None)
    if scale and scale <= max_context_length and config.attn_temperature_tuning:
        raise UnsupportedModel(
            f"{name}: its attention is scaled from {scale} tokens on, and supported only up to "
            f"--max-context-length {scale - 1}"
        )
