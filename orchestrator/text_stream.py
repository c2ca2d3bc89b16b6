"""Tokens to text as they come: no half characters, nothing of a stop string."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from orchestrator.tokenizer import Tokenizer
from outrider.errors import InvalidRequest

_REPLACEMENT = "\ufffd"

# A character spans at most four tokens, one a byte. Among so many tokens without a
# readable end, the first ones are certainly not about to become a character.
_MAX_INCOMPLETE = 8


def check_stop_strings(stop: Sequence[str]) -> None:
    """Raises InvalidRequest for a stop string that every text contains."""
    if not all(stop):
        raise InvalidRequest("a stop string must not be empty")


class TextStream:
    """Turns tokens into text that is final.

    Held back are a character whose last token is missing, and an end that may
    become a stop string. The pieces join to what decoding all tokens at once gives.
    One exception: byte tokens of a sentencepiece vocabulary that are no valid text
    differ in the number of replacement characters.

    `stopped` is the stop string that was found, if any: the one that is complete
    first, of several the longest. The text ends before it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        check_stop_strings(stop)
        self._tokenizer = tokenizer
        self._stop = stop
        # Tokens whose text is out. The next ones are decoded behind them, since a
        # leading space depends on what comes before.
        self._context: list[int] = []
        self._pending: list[int] = []  # tokens whose text is not out
        self._held = ""  # text that may be the beginning of a stop string
        self._num_released = 0  # characters
        self._lengths: list[int] = []  # characters decoded up to each token
        self.stopped: str | None = None

    @property
    def num_kept_tokens(self) -> int:
        """How many of the tokens it takes to produce the text that was released.

        Without a stop string all of them. With one, tokens up to the one that brings
        the last character before it; that token may hold some of the stop string too.
        """
        if self.stopped is None:
            return len(self._lengths)
        if self._num_released == 0:
            return 0
        return bisect_left(self._lengths, self._num_released) + 1

    def push(self, token_id: int) -> str:
        """Takes a token and returns the text that became final by it."""
        self._lengths.append(self._lengths[-1] if self._lengths else 0)
        if not self._tokenizer.has_text(token_id):
            return ""
        self._pending.append(token_id)
        return self._release(self._take_decoded(is_last=False))

    def flush(self) -> str:
        """The text that was held back; call it when no more tokens come."""
        if self.stopped is not None:
            return ""
        released = self._release(self._take_decoded(is_last=True))
        held, self._held = self._held, ""  # none, if a stop string was found now
        self._num_released += len(held)
        return released + held

    def _take_decoded(self, is_last: bool) -> str:
        """The text of the pending tokens that later ones cannot change."""
        text = self._decode(self._pending)
        num_final = len(self._pending)
        if text.endswith(_REPLACEMENT) and not is_last:
            num_final = self._last_boundary(text)
            text = self._decode(self._pending[:num_final])
        final, self._pending = self._pending[:num_final], self._pending[num_final:]
        # Tokens without text alone are no context: the space behind them would be lost.
        self._context = final if text else self._context + final
        if text:
            self._lengths[-1] += len(text)
        return text

    def _last_boundary(self, text: str) -> int:
        """How many of the pending tokens later ones cannot change any more.

        Behind the end of a character both sides can be decoded apart; bytes of one
        character that are torn apart make more replacement characters than together.
        """
        if len(self._pending) < _MAX_INCOMPLETE:
            return 0
        for end in range(len(self._pending) - 1, 0, -1):
            rest = self._tokenizer.decode(self._pending[end:])
            if self._decode(self._pending[:end]) + rest == text:
                return end
        return len(self._pending)

    def _decode(self, token_ids: list[int]) -> str:
        """The text that tokens add behind the context."""
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + token_ids)[len(before) :]

    def _release(self, text: str) -> str:
        """Adds new text to what is held and returns what cannot be part of a stop string."""
        text = self._held + text
        self._held = ""
        found = [stop for stop in self._stop if stop in text]
        if found:
            # What is complete first does not depend on how tokens cut the text.
            found.sort(key=lambda stop: (text.find(stop) + len(stop), -len(stop)))
            self.stopped = found[0]
            end = text.find(self.stopped)
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
