"""Prompt lookup: draft tokens from where the last tokens stood in the text before."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.policy.draft_policy import MAX_DRAFT_LENGTH, Decision
from orchestrator.step import NO_DRAFT, DraftSource, DraftTokens
from outrider.sampling.prompt_lookup import longest_match

# What followed a single token is right too seldom: one in ten, in chat.
SHORTEST_MATCH = 2

# Where the draft says otherwise, what followed a shorter match is right less often than it
# (`benchmarks/lookup.py`).
SURE_MATCH = 5


def look_up(
    tokens: Sequence[int], room: int, decision: Decision, predrafted: Sequence[int] = ()
) -> DraftTokens:
    """What stands in the text behind a match of the last tokens, at most `room` tokens.

    None where that is shorter than `decision` wants, where what the draft has `predrafted` is
    likelier, or where that says the same and more.
    """
    match = longest_match(tokens, SHORTEST_MATCH, MAX_DRAFT_LENGTH)
    if match is None:
        return NO_DRAFT
    is_confirmed = list(predrafted[:1]) == [tokens[match.end]]
    if predrafted and not is_confirmed and match.length < SURE_MATCH:
        return NO_DRAFT
    worth = decision.confirmed_lookup_length if is_confirmed else decision.lookup_length
    # A match of n tokens promises about n more.
    num_tokens = min(worth, match.length, room)
    found = tuple(tokens[match.end : match.end + num_tokens])
    shortest = max(1, decision.shortest_lookup, len(predrafted) if is_confirmed else 0)
    if len(found) < shortest:
        return NO_DRAFT
    return DraftTokens(
        found, DraftSource.LOOKUP, match_length=match.length, is_confirmed=is_confirmed
    )
