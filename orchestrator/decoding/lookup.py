"""Prompt lookup: draft tokens from where the last tokens stood in the text before."""

from collections.abc import Sequence

from orchestrator.policy.config import MAX_DRAFT_LENGTH
from orchestrator.policy.draft_policy import Decision
from orchestrator.step import NO_DRAFT, DraftSource, DraftTokens
from outrider.sampling.prompt_lookup import longest_match

# What followed a single token is right too seldom: one in ten, in chat.
SHORTEST_MATCH = 2

# A match shorter than this is less reliable than a draft that disagrees with it
# (`benchmarks/lookup.py`).
SURE_MATCH = 5


def look_up(
    tokens: Sequence[int], room: int, decision: Decision, predrafted: Sequence[int] = ()
) -> DraftTokens:
    """What stands in the text after a match of the last tokens, at most `room` tokens.

    NO_DRAFT if that is too short for `decision`, if a predraft that disagrees is likelier, or if
    one that agrees is longer.
    """
    match = longest_match(tokens, SHORTEST_MATCH, MAX_DRAFT_LENGTH)
    if match is None:
        return NO_DRAFT
    is_confirmed = bool(predrafted) and predrafted[0] == tokens[match.end]
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
