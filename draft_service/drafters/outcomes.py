"""Which outcomes of a verification are worth preparing for."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from outrider.sampling import Choice


def likeliest_corrections(
    draft: Sequence[int], ranks: Sequence[Sequence[Choice]], count: int
) -> list[list[int]]:
    """The likeliest ways in which the target rejects one of `draft`, likeliest first.

    Each is the tokens that would be committed: some draft tokens, then another token in
    place of the next one. Its probability is the draft's own: that the target chooses
    each of these tokens as the draft would.

    Args:
        ranks: entry i has the draft's choices where `draft[i]` stands; nothing if unknown.
    """
    corrections: list[tuple[float, list[int]]] = []
    accepted_prob = 1.0
    for index, (token_id, choices) in enumerate(zip(draft, ranks, strict=True)):
        probs = {choice.token_id: choice.prob for choice in choices}
        for other, prob in probs.items():
            if other != token_id and accepted_prob * prob > 0:
                corrections.append((accepted_prob * prob, [*draft[:index], other]))
        accepted_prob *= probs.get(token_id, 0.0)
    return [tokens for _, tokens in heapq.nlargest(count, corrections, key=lambda c: c[0])]
