"""Draft tokens from the text itself: what followed the last tokens when they stood there before."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.lengths import MAX_LENGTH, LengthPolicy
from outrider.prompt_lookup import longest_match

# What followed a single token is right too seldom: one in ten, in chat.
SHORTEST_MATCH = 2

# To interrupt a target that goes on takes the pass that it is in, and a way there and back.
SHORTEST_INTERRUPTION = 8


def look_up(
    tokens: Sequence[int], room: int, lengths: LengthPolicy, least: int
) -> tuple[tuple[int, ...], int]:
    """Tokens that stand in the text behind what matches the last ones, and how many match.

    None where there are fewer than `least`.
    """
    match = longest_match(tokens, SHORTEST_MATCH, MAX_LENGTH)
    if match is None:
        return (), 0
    num_tokens = min(lengths.lookup_length(match.length), room)
    looked_up = tuple(tokens[match.end : match.end + num_tokens])
    return (looked_up, match.length) if len(looked_up) >= max(1, least) else ((), 0)
