"""Tokens to text as they come: no half characters, nothing of a stop string."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from orchestrator.tokenizer import Tokenizer
from outrider.errors import InvalidRequest

_REPLACEMENT = "\ufffd"

# A character spans at most so many tokens; what is still no text then never will be.
_MAX_INCOMPLETE = 8


def check_stop_strings(stop: Sequence[str]) -> None:
    """Raises InvalidRequest for a stop string that every text contains."""
    if not all(stop):
        raise InvalidRequest("a stop string must not be empty")


class TextStream:
    """Turns tokens into text that is final.

    Held back are a character whose last token is missing, and an end that may
    become a stop string. `stopped` is the stop string that was found, if any; the
    text ends before it, and `num_kept_tokens` are needed to produce that text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        check_stop_strings(stop)
        self._tokenizer = tokenizer
        self._stop = stop
        self._token_ids: list[int] = []
        # Tokens [begin, read) were emitted and give the context in which the
        # next ones are decoded: a leading space depends on it.
        self._begin = 0
        self._read = 0
        self._held = ""  # text that may be the beginning of a stop string
        self._num_released = 0  # characters
        self._lengths: list[int] = []  # characters decoded up to each token
        self.stopped: str | None = None

    @property
    def num_kept_tokens(self) -> int:
        """How many of the tokens produce the text that was released."""
        if self.stopped is None:
            return len(self._token_ids)
        if self._num_released == 0:
            return 0
        return bisect_left(self._lengths, self._num_released) + 1

    def push(self, token_id: int) -> str:
        """Takes a token and returns the text that became final by it."""
        self._token_ids.append(token_id)
        text = self._decode_new(is_last=False)
        self._lengths.append((self._lengths[-1] if self._lengths else 0) + len(text))
        return self._release(text)

    def flush(self) -> str:
        """The text that was held back; call it when no more tokens come."""
        if self.stopped is not None:
            return ""
        released = self._release(self._decode_new(is_last=True))
        held, self._held = self._held, ""  # none, if a stop string was found now
        self._num_released += len(held)
        return released + held

    def _decode_new(self, is_last: bool) -> str:
        before = self._tokenizer.decode(self._token_ids[self._begin : self._read])
        text = self._tokenizer.decode(self._token_ids[self._begin :])
        num_new = len(self._token_ids) - self._read
        if text.endswith(_REPLACEMENT) and num_new < _MAX_INCOMPLETE and not is_last:
            return ""
        if len(text) <= len(before) and not is_last:
            return ""
        self._begin, self._read = self._read, len(self._token_ids)
        return text[len(before) :]

    def _release(self, text: str) -> str:
        """Adds new text to what is held and returns what cannot be part of a stop string."""
        text = self._held + text
        self._held = ""
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            end, self.stopped = min(found)
        else:
            end = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
            self._held = text[end:]
        self._num_released += end
        return text[:end]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
