"""Predrafts of feature drafts against drafting from scratch on the same engine."""

from collections.abc import Sequence
from typing import Any

import pytest

from draft_service.drafters.eagle3 import Eagle3Drafter, FeatureDrafting
from draft_service.drafters.fan_out import FanOut, StepTime
from outrider.engine.chunk import Chunk
from outrider.protocol.messages import GREEDY, PredraftPlan, SamplingParams
from tests.support.eagle3_sessions import (
    PROMPT,
    SAMPLED,
    Session,
    drafted,
    drafter,
    engine,
)
from tests.support.predrafted import Table

__all__ = ["drafter", "engine"]  # fixtures


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_predrafts_are_what_proposals_without_states_would_be(
    drafter: Eagle3Drafter, params: SamplingParams
) -> None:
    """Behind all of the draft and a guess, and behind corrections, at once and after a hit."""
    engine, session, tokens = drafter.engine, Session(drafter), list(PROMPT)
    proposal = await session.propose(tokens, 3, params)
    draft = list(proposal.draft_token_ids)
    for _ in range(3):
        table = Table()
        session.real.predraft(len(draft), PredraftPlan(4, 3), table.add)
        predrafted = await table.full(4, 3)
        assert any(assumed[: len(draft)] == tuple(draft) for assumed in predrafted)
        for assumed, one in predrafted.items():
            expected = drafted(engine, tokens, 3, params, draft=assumed)
            assert list(one.draft_token_ids) == expected[: len(one.draft_token_ids)], assumed
        # A hit: the target has committed what one of them assumes, and verifies its tokens.
        assumed = max(predrafted, key=len)
        tokens += assumed
        draft = list(predrafted[assumed].draft_token_ids)
        followed = await session.propose(tokens, 0, params, draft=draft)
        assert followed.draft_token_ids == ()
    # And what comes after a miss is drafted with the target's states only.
    tokens += [draft[0], 77]
    proposal = await session.propose(tokens, 3, params)
    assert list(proposal.draft_token_ids) == drafted(engine, tokens, 3, params)


async def test_predrafts_copy_what_is_read_and_read_one_token(
    drafter: Eagle3Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a proposal, and after the tokens of a hit have been read again."""
    passes: list[list[Chunk]] = []
    choose = drafter.engine.choose

    def noting(chunks: Sequence[Chunk], *args: Any) -> Any:
        passes.append(list(chunks))
        return choose(chunks, *args)

    monkeypatch.setattr(drafter.engine, "choose", noting)
    session, tokens, draft = Session(drafter), list(PROMPT), list[int]()
    for k in (3, 0):
        proposal = await session.propose(tokens, k, draft=draft)
        draft += proposal.draft_token_ids
        passes.clear()
        table = Table()
        plan = PredraftPlan(4, 2, is_limit=True)  # others begin after the guess
        session.real._fan_out = FanOut(StepTime(1.0, 1.0))
        session.real._fan_out.observe(3, 10**9, was_served=True)
        session.real.predraft(len(draft), plan, table.add)
        predrafted = await table.full(4, 2)
        copying = [chunk for chunks in passes for chunk in chunks if chunk.copy_from]
        assert [len(chunk.token_ids) for chunk in copying] == [1, 1, 1]
        assumed = max(predrafted, key=len)
        tokens += assumed
        draft = list(predrafted[assumed].draft_token_ids)


async def test_tokens_that_are_read_again_do_not_make_steps_look_slow(
    drafter: Eagle3Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a hit the guess comes after several steps, of which the fan-out learns one's time."""
    session, draft = Session(drafter), [61, 62, 63]
    await session.propose(PROMPT, 0, draft=draft)
    noted: list[int] = []
    session.real._fan_out = FanOut(StepTime(1.0, 1.0))
    monkeypatch.setattr(session.real._fan_out, "note_pass", lambda _, ns: noted.append(ns))
    table = Table()
    session.real.predraft(3, PredraftPlan(1, 2, is_limit=True), table.add)
    await table.full(1, 2)
    predrafts = session.real._predrafts
    assert predrafts is not None
    [guess] = predrafts._jobs
    assert isinstance(guess, FeatureDrafting)
    assert guess._num_steps == 6
    assert 0 < noted[0] < guess.timings.forward_ns / 4
