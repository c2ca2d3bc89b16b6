"""The likeliest outcomes of a verification, according to the draft."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from outrider.sampling.sampler import Choice

# The chance of a draft token that is not the draft's own but was looked up in the text.
_UNKNOWN_CHANCE = 0.6


class Correction(NamedTuple):
    """An outcome in which the target rejects a draft token."""

    chance: float
    token_ids: list[int]
    """The tokens that it would commit: the accepted draft tokens, then the recovered token."""


def likeliest_corrections(
    draft: Sequence[int], ranks: Sequence[Sequence[Choice]], count: int
) -> list[Correction]:
    """The `count` likeliest outcomes in which the target rejects one of `draft`, in this order.

    Their chances assume that the target chooses each token with the draft's probability.

    Args:
        ranks: entry i has the draft's choices at the position of `draft[i]`; empty if unknown.
    """
    corrections: list[Correction] = []
    accepted_prob = 1.0
    for index, (token_id, choices) in enumerate(zip(draft, ranks, strict=True)):
        probs = {choice.token_id: choice.prob for choice in choices}
        for other, prob in probs.items():
            if other != token_id and accepted_prob * prob > 0:
                tokens = [*draft[:index], other]
                corrections.append(Correction(accepted_prob * prob, tokens))
        accepted_prob *= probs.get(token_id, 0.0)
    return heapq.nlargest(count, corrections, key=lambda correction: correction.chance)


def acceptance_chance(draft: Sequence[int], ranks: Sequence[Sequence[Choice]]) -> float:
    """The chance that the target accepts all of `draft`, by the draft's own probabilities."""
    chance = 1.0
    for token_id, choices in zip(draft, ranks, strict=True):
        probs = {choice.token_id: choice.prob for choice in choices}
        chance *= probs.get(token_id, 0.0) if probs else _UNKNOWN_CHANCE
    return chance
