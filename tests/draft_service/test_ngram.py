from __future__ import annotations

import random

import pytest

from draft_service.drafters.ngram import MAX_NGRAM, MIN_NGRAM, NgramDrafter, look_up
from outrider.errors import ContextMismatch, NoFreeSlot
from outrider.protocol.messages import SamplingParams


def naive_look_up(text: list[int], num_tokens: int) -> list[int]:
    for length in range(min(MAX_NGRAM, len(text) - 1), MIN_NGRAM - 1, -1):
        for begin in range(len(text) - length - 1, -1, -1):
            if text[begin : begin + length] == text[-length:]:
                return text[begin + length : begin + length + num_tokens]
    return []


def test_look_up_equals_a_naive_search() -> None:
    generator = random.Random(0)
    for _ in range(500):
        # Ids whose bytes also match across token borders.
        text = generator.choices([0, 1, 256, 257, 65536, 16777217], k=generator.randint(1, 30))
        assert look_up(text, 5) == naive_look_up(text, 5)


def test_nothing_repeated_nothing_proposed() -> None:
    assert look_up([1, 2, 3, 4, 5], 3) == []
    assert look_up([1], 3) == []


async def test_session_follows_keep_and_append() -> None:
    session = NgramDrafter(num_slots=1, max_context_length=100).open_session()
    params = SamplingParams()
    proposal = await session.propose(0, [1, 2, 3, 4, 1, 2], 2, params, None)
    assert proposal.draft_token_ids == (3, 4)
    assert (proposal.context_length, proposal.sequence_length) == (6, 6)
    proposal = await session.propose(4, [3], 4, params, None)  # the text is now 1 2 3 4 3
    assert proposal.draft_token_ids == ()
    with pytest.raises(ContextMismatch):
        await session.propose(6, [1], 1, params, None)
    assert (await session.propose(5, [4, 3, 4], 1, params, None)).context_length == 8


def test_sessions_are_limited_and_given_back() -> None:
    drafter = NgramDrafter(num_slots=1, max_context_length=100)
    session = drafter.open_session()
    with pytest.raises(NoFreeSlot):
        drafter.open_session()
    session.close()
    drafter.open_session()
