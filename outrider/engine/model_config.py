"""What a model's configuration says of the texts that it can take."""

from __future__ import annotations

from typing import Any

from outrider.errors import ConfigurationError, UnsupportedModel

DEFAULT_MAX_CONTEXT_LENGTH = 2048
_SHORTEST_CONTEXT_LENGTH = 2


def context_length(config: Any, wanted: int | None) -> int:
    """Of a slot. Raises ConfigurationError if the model takes less, or nothing has room in it."""
    longest = getattr(config, "max_position_embeddings", None)
    if wanted is None:
        return min(longest or DEFAULT_MAX_CONTEXT_LENGTH, DEFAULT_MAX_CONTEXT_LENGTH)
    if longest is not None and wanted > longest:
        raise ConfigurationError(f"the model's context is {longest} tokens; {wanted} are too many")
    if wanted < _SHORTEST_CONTEXT_LENGTH:
        raise ConfigurationError(f"a context of {wanted} has no room for a prompt and an answer")
    return wanted


def check_windows(config: Any, seen: set[int], max_context_length: int, name: str) -> None:
    """Refuses a sliding window that the layers do not pass on and that the context exceeds."""
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return
    if window < max_context_length and window not in seen:
        raise UnsupportedModel(
            f"{name}: its sliding window of {window} tokens is supported only up to "
            f"--max-context-length {window}"
        )
