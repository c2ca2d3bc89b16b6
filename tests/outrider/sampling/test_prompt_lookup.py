from __future__ import annotations

import random

from outrider.sampling.prompt_lookup import Match, longest_match

SHORTEST, LONGEST = 2, 4


def naive_match(text: list[int]) -> Match | None:
    for length in range(min(LONGEST, len(text) - 1), SHORTEST - 1, -1):
        for begin in range(len(text) - length - 1, -1, -1):
            if text[begin : begin + length] == text[-length:]:
                return Match(length, begin + length)
    return None


def test_it_finds_what_a_naive_search_finds() -> None:
    generator = random.Random(0)
    for _ in range(500):
        # Ids whose bytes also match across token borders.
        text = generator.choices([0, 1, 256, 257, 65536, 16777217], k=generator.randint(1, 30))
        assert longest_match(text, SHORTEST, LONGEST) == naive_match(text)


def test_nothing_repeated_nothing_found() -> None:
    assert longest_match([1, 2, 3, 4, 5], SHORTEST, LONGEST) is None
    assert longest_match([1], SHORTEST, LONGEST) is None
    assert longest_match([], SHORTEST, LONGEST) is None
