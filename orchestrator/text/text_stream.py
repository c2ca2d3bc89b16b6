"""Streamed text of committed tokens: whole characters only, and no part of a stop string."""

import re
from bisect import bisect_left
from collections.abc import Sequence

from orchestrator.text.tokenizer import Tokenizer
from outrider.errors import InvalidRequest

_REPLACEMENT = "\ufffd"

# A character spans at most four tokens, one a byte. In a longer run of tokens without a
# readable end, the first ones cannot become a character.
_MAX_INCOMPLETE = 8

# Marks of tokens without text, in the text that is searched for stop strings; they are removed
# before the text is released. Surrogates, since decoded text has none.
_DROPPED = "\ud800"
_MARKS = re.compile("[\ud800-\udfff]")


def check_stop_strings(stop: Sequence[str]) -> None:
    """Raises InvalidRequest if one of the stop strings is empty."""
    if not all(stop):
        raise InvalidRequest("a stop string must not be empty")


class TextStream:
    """Turns tokens into text that will not change any more.

    It holds back incomplete characters, and a suffix that may become a stop string. Concatenated,
    the pieces are what the tokens add to the text of `prompt`, special tokens omitted. One
    exception: for byte tokens of a sentencepiece vocabulary that are not valid UTF-8, the number
    of replacement characters may differ.

    `stopped` is the stop string that was found, if any: the one that is complete first; if several
    are, the longest. The text ends before it. Special tokens in a stop string are matched by id. A
    stop string is not matched across a token that has no text.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), prompt: Sequence[int] = ()
    ) -> None:
        check_stop_strings(stop)
        self._tokenizer = tokenizer
        self._marks: dict[int, str] = {}  # of special tokens that stop strings contain
        # Stop strings with marks, to those without.
        self._stop = {self._marked(each): each for each in stop} | {each: each for each in stop}
        # Tokens whose text is released. The next ones are decoded behind them, since a
        # leading space depends on what comes before.
        self._context = self._end_of(prompt)
        self._pending: list[int] = []  # tokens whose text is not released
        self._held = ""  # text that may be the beginning of a stop string
        self._num_released = 0  # characters and marks
        self._ends: list[int] = []  # characters and marks up to each token
        self.stopped: str | None = None

    @property
    def num_kept_tokens(self) -> int:
        """How many of the tokens form the text.

        Without a stop string: all. With one: those up to the last character before it; the last of
        these tokens may also contain the beginning of the stop string.
        """
        if self.stopped is None:
            return len(self._ends)
        if self._num_released == 0:
            return 0
        return bisect_left(self._ends, self._num_released) + 1

    def push(self, token_id: int) -> str:
        """Adds a token and returns the text that became final."""
        self._ends.append(self._ends[-1] if self._ends else 0)
        if not self._tokenizer.has_text(token_id):
            self._ends[-1] += 1
            return self._release(self._marks.get(token_id, _DROPPED))
        self._pending.append(token_id)
        return self._release(self._take_decoded(is_last=False))

    def flush(self) -> str:
        """The text that was held back. Call it after the last token."""
        if self.stopped is not None:
            return ""
        released = self._release(self._take_decoded(is_last=True))
        held, self._held = self._held, ""  # empty if a stop string was found now
        self._num_released += len(held)
        return released + _MARKS.sub("", held)

    def _marked(self, stop: str) -> str:
        """A stop string with a mark in place of each special token."""

        def mark(found: re.Match[str]) -> str:
            token_id = self._tokenizer.special_ids[found[0]]
            return self._marks.setdefault(token_id, chr(ord(_DROPPED) + 1 + len(self._marks)))

        return self._tokenizer.special_token.sub(mark, stop)

    def _end_of(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of a prompt that have text, from the beginning of a character on."""
        last: list[int] = []
        for token_id in reversed(prompt):
            if len(last) == _MAX_INCOMPLETE:
                break
            if self._tokenizer.has_text(token_id):
                last.insert(0, token_id)
        ends = [last[begin:] for begin in range(len(last))]
        # Bytes of a character without the first ones are replaced. If the text itself has
        # replacement characters, every end has.
        return min(ends, key=self._num_replaced, default=[])

    def _num_replaced(self, token_ids: list[int]) -> int:
        return self._tokenizer.decode(token_ids).count(_REPLACEMENT)

    def _take_decoded(self, is_last: bool) -> str:
        """The text of the pending tokens that later ones cannot change."""
        text = self._decode(self._pending)
        num_final = len(self._pending)
        if text.endswith(_REPLACEMENT) and not is_last:
            num_final = self._last_boundary()
            text = self._decode(self._pending[:num_final])
        final, self._pending = self._pending[:num_final], self._pending[num_final:]
        # Tokens without text are not enough as context: the space behind them would be lost.
        self._context = final if text else self._context + final
        if text:
            self._ends[-1] += len(text)
        return text

    def _last_boundary(self) -> int:
        """How many of the pending tokens can no longer change with later ones.

        At the end of a character both sides can be decoded separately; the bytes of one
        character would give more replacement characters separately than together.
        """
        if len(self._pending) < _MAX_INCOMPLETE:
            return 0

        def num_replaced(end: int) -> int:
            parts = self._pending[:end], self._pending[end:]
            return sum(map(self._num_replaced, parts))

        return min(range(len(self._pending) - 1, 0, -1), key=num_replaced)

    def _decode(self, token_ids: list[int]) -> str:
        """The text that tokens add behind the context."""
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + token_ids)[len(before) :]

    def _release(self, text: str) -> str:
        """Adds new text to the held text and returns what cannot be part of a stop string."""
        text = self._held + text
        self._held = ""
        found = [stop for stop in self._stop if stop in text]
        if found:
            # Which is complete first does not depend on how tokens divide the text.
            found.sort(key=lambda stop: (text.find(stop) + len(stop), -len(stop)))
            self.stopped = self._stop[found[0]]
            end = text.find(found[0])
        else:
            end = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
            self._held = text[end:]
        self._num_released += end
        return _MARKS.sub("", text[:end])


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
