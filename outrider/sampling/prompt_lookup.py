"""Prompt lookup: what followed the last tokens when they stood in the text before.

Costs nothing and needs no model; pays where a text repeats its prompt or itself, as in
summaries, edits, lists and code. (Saxena, "Prompt Lookup Decoding", 2023.)
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """The last `length` tokens of a text stand in it before; they end there at `end`."""

    length: int
    end: int


def longest_match(token_ids: Sequence[int], shortest: int, longest: int) -> Match | None:
    """The latest earlier place of the text's end; the longest end that has one wins."""
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
