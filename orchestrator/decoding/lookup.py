"""Prompt lookup: draft tokens copied from where the last tokens occurred earlier in the text."""

from collections.abc import Sequence

from orchestrator.policy.config import MAX_DRAFT_LENGTH
from orchestrator.policy.draft_policy import Decision
from orchestrator.step import NO_DRAFT, DraftSource, DraftTokens
from outrider.sampling.prompt_lookup import longest_match

# After a match of a single token, only one token in ten is accepted (in chat).
SHORTEST_MATCH = 2

# A match shorter than this is less reliable than a draft that disagrees with it
# (`benchmarks/lookup.py`).
SURE_MATCH = 5


def look_up(
    tokens: Sequence[int], room: int, decision: Decision, predrafted: Sequence[int] = ()
) -> DraftTokens:
    """At most `room` draft tokens, copied from after the longest match of the last tokens.

    Args:
        room: the most draft tokens.
        decision: limits the number of tokens from above and below.
        predrafted: the draft tokens of the predraft for `tokens`, if there is one.

    Returns NO_DRAFT if there is no match, or too few tokens for `decision`; if the match is short
    and the predraft begins with another token; or if the predraft begins with the same token and
    is longer.
    """
    match = longest_match(tokens, SHORTEST_MATCH, MAX_DRAFT_LENGTH)
    if match is None:
        return NO_DRAFT
    is_confirmed = bool(predrafted) and predrafted[0] == tokens[match.end]
    if predrafted and not is_confirmed and match.length < SURE_MATCH:
        return NO_DRAFT
    # A match of n tokens promises about n more.
    num_tokens = min(decision.lookup_length, match.length, room)
    found = tuple(tokens[match.end : match.end + num_tokens])
    shortest = max(1, decision.shortest_lookup, len(predrafted) if is_confirmed else 0)
    if len(found) < shortest:
        return NO_DRAFT
    return DraftTokens(found, DraftSource.LOOKUP, match_length=match.length)
