"""Draft tokens from the text itself: what followed the last tokens when they stood there before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.policy.draft_length import MAX_LENGTH, LengthPolicy
from outrider.sampling.prompt_lookup import longest_match

# What followed a single token is right too seldom: one in ten, in chat.
SHORTEST_MATCH = 2

# To interrupt a target that goes on takes the pass that it is in, and a way there and back.
SHORTEST_INTERRUPTION = 8

# Where the draft says otherwise, what followed a shorter match is right less often than it
# (`benchmarks/lookup.py`).
SURE_MATCH = 5


@dataclass(frozen=True, slots=True)
class LookedUp:
    """Draft tokens that stand in the text behind a match of `match_length` tokens.

    `is_confirmed` where the draft has predrafted the first of them, too.
    """

    token_ids: tuple[int, ...] = ()
    match_length: int = 0
    is_confirmed: bool = False


NOTHING = LookedUp()


def look_up(
    tokens: Sequence[int],
    room: int,
    lengths: LengthPolicy,
    least: int = 1,
    predrafted: Sequence[int] = (),
) -> LookedUp:
    """What stands in the text behind what matches the last tokens.

    Nothing where there are fewer than `least`, or where what the draft has `predrafted` is
    likelier, or says the same and more.
    """
    match = longest_match(tokens, SHORTEST_MATCH, MAX_LENGTH)
    if match is None:
        return NOTHING
    is_confirmed = list(predrafted[:1]) == [tokens[match.end]]
    if predrafted and not is_confirmed and match.length < SURE_MATCH:
        return NOTHING
    num_tokens = min(lengths.lookup_length(match.length, is_confirmed), room)
    looked_up = tuple(tokens[match.end : match.end + num_tokens])
    if len(looked_up) < max(1, least) or (is_confirmed and len(looked_up) < len(predrafted)):
        return NOTHING
    return LookedUp(looked_up, match.length, is_confirmed)
