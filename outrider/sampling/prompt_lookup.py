"""Prompt lookup: finds where the last tokens of a text occurred earlier in it.

It needs no model, and pays if a text repeats its prompt or itself, as in summaries, edits, lists
and code. (Saxena, "Prompt Lookup Decoding", 2023.)
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """An earlier occurrence of a text's last `length` tokens, which ends before index `end`."""

    length: int
    end: int


def longest_match(token_ids: Sequence[int], shortest: int, longest: int) -> Match | None:
    """The longest match of `shortest` to `longest` tokens; of several, the latest one.

    None if there is none.
    """
    text = array("I", token_ids)
    width = text.itemsize
    haystack = text.tobytes()
    for length in range(min(longest, len(text) - 1), shortest - 1, -1):
        needle = haystack[-length * width :]
        found = haystack.rfind(needle, 0, len(haystack) - width)
        while found > 0 and found % width:  # between two tokens
            found = haystack.rfind(needle, 0, found + len(needle) - 1)
        if found >= 0:
            return Match(length, found // width + length)
    return None
