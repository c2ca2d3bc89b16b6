"""Sessions of feature drafts against drafting from scratch on the same engine."""

import asyncio

import pytest

from draft_service.drafters.drafting import Sampler
from draft_service.drafters.eagle3 import Eagle3Drafter
from outrider.engine.eagle3.engine import Eagle3Engine
from outrider.errors import InvalidRequest
from outrider.protocol.messages import GREEDY, PredraftPlan, Proposal, SamplingParams
from tests.support.eagle3_sessions import (
    PROMPT,
    SAMPLED,
    Session,
    drafted,
    drafter,
    engine,
    states_of,
)

__all__ = ["drafter", "engine"]  # fixtures


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_proposals_are_what_the_draft_says_from_scratch(
    drafter: Eagle3Drafter, params: SamplingParams
) -> None:
    """Behind rejections, full acceptance, and several tokens from elsewhere."""
    engine, session, tokens = drafter.engine, Session(drafter), list(PROMPT)
    for num_accepted, others in [(0, [50]), (2, [51]), (5, [52]), (1, [53, 54, 55]), (5, [56])]:
        proposal = await session.propose(tokens, 5, params)
        assert list(proposal.draft_token_ids) == drafted(engine, tokens, 5, params)
        tokens += [*proposal.draft_token_ids[:num_accepted], *others]


async def test_a_proposal_ends_where_the_draft_is_unsure_of_it(
    drafter: Eagle3Drafter, engine: Eagle3Engine
) -> None:
    whole = await Session(drafter).propose(PROMPT, 8)
    sure = Eagle3Drafter(engine, num_predrafts=0, min_confidence=0.9999)
    short = await Session(sure).propose(PROMPT, 8)
    sure.scheduler.close()
    assert list(short.draft_token_ids) == list(whole.draft_token_ids)[:1]


async def test_states_behind_a_gap_are_a_new_beginning(drafter: Eagle3Drafter) -> None:
    """A prompt longer than the window; then one that the draft was idle for."""
    engine, session, tokens = drafter.engine, Session(drafter), list(PROMPT)
    proposal = await session.propose(tokens, 4, first=12)
    assert list(proposal.draft_token_ids) == drafted(engine, tokens, 4, first=12)
    tokens += [*proposal.draft_token_ids[:2], 60]
    proposal = await session.propose(tokens, 4)
    assert list(proposal.draft_token_ids) == drafted(engine, tokens, 4, first=12)
    tokens += range(70, 80)
    proposal = await session.propose(tokens, 4, first=26)
    assert list(proposal.draft_token_ids) == drafted(engine, tokens, 4, first=26)


async def test_a_prompt_may_come_in_pieces(drafter: Eagle3Drafter) -> None:
    engine, session = drafter.engine, Session(drafter)
    for length in (6, 7, 18):
        assert (await session.propose(PROMPT[:length], 0)).draft_token_ids == ()
    proposal = await session.propose(PROMPT, 4)
    assert list(proposal.draft_token_ids) == drafted(engine, PROMPT, 4)


async def test_states_that_come_again_change_nothing(drafter: Eagle3Drafter) -> None:
    session = Session(drafter)
    await session.propose(PROMPT[:10], 3)
    proposal = await session.propose(PROMPT, 4, first=2)
    assert list(proposal.draft_token_ids) == drafted(drafter.engine, PROMPT, 4)


async def test_the_same_proposal_twice(drafter: Eagle3Drafter) -> None:
    session = Session(drafter)
    first = await session.propose(PROMPT, 4)
    second = await session.propose(PROMPT, 4)
    assert first.draft_token_ids == second.draft_token_ids


async def test_tokens_without_states_are_read_with_the_drafts_own(drafter: Eagle3Drafter) -> None:
    """A draft from elsewhere, or pipelined steps."""
    session, draft = Session(drafter), [61, 62, 63]
    proposal = await session.propose(PROMPT, 4, draft=draft)
    assert list(proposal.draft_token_ids) == drafted(drafter.engine, PROMPT, 4, draft=draft)


async def test_too_many_tokens_without_states_are_refused(drafter: Eagle3Drafter) -> None:
    session = drafter.open_session()
    with pytest.raises(InvalidRequest, match="are missing"):
        await session.propose(0, [5] * 70, 4, GREEDY, None, states_of([5] * 3, 0))


async def test_nothing_follows_a_single_token(drafter: Eagle3Drafter) -> None:
    session = drafter.open_session()
    proposal = await session.propose(0, [7], 4, GREEDY, None)
    assert proposal.draft_token_ids == ()
    session.predraft(0, PredraftPlan(4, 3), lambda grown: None)
    assert (await session.propose(1, [8], 2, GREEDY, None, states_of([7, 8], 0))).draft_token_ids


async def test_sessions_share_passes(drafter: Eagle3Drafter) -> None:
    engine, texts = drafter.engine, [list(PROMPT), [*range(80, 90)]]
    sessions = [Session(drafter) for _ in texts]
    for _ in range(3):
        pairs = zip(sessions, texts, strict=True)
        proposals = await asyncio.gather(*(each.propose(text, 4) for each, text in pairs))
        for text, proposal in zip(texts, proposals, strict=True):
            assert list(proposal.draft_token_ids) == drafted(engine, text, 4)
            text += [*proposal.draft_token_ids[:2], 99]


async def test_a_prefix_of_another_session_is_not_taken_over(drafter: Eagle3Drafter) -> None:
    """The same tokens, with other states, since the texts before them differ."""
    tokens = [*range(60, 70), *PROMPT]
    await Session(drafter).propose(tokens, 2, first=10)
    proposal = await Session(drafter).propose(PROMPT, 4)
    assert list(proposal.draft_token_ids) == drafted(drafter.engine, PROMPT, 4)


async def test_a_fault_in_one_session_is_its_own(
    drafter: Eagle3Drafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also inside of a pass that it shares."""
    bad, good = Session(drafter), Session(drafter)

    def fail(choices: object, index: int) -> None:
        raise ValueError("its own fault")

    class Failing(Sampler):
        revise = staticmethod(fail)  # type: ignore[assignment]

    sampler = bad.real._sampler
    bad.real._sampler = Failing(sampler.params, sampler.token_ids, sampler.eos_token_ids)
    failed, proposal = await asyncio.gather(
        bad.propose(PROMPT, 4), good.propose(PROMPT, 4), return_exceptions=True
    )
    assert str(failed) == "its own fault"
    assert isinstance(proposal, Proposal)
    assert list(proposal.draft_token_ids) == drafted(drafter.engine, PROMPT, 4)


async def test_rows_that_were_read_are_dropped(drafter: Eagle3Drafter) -> None:
    session, tokens = Session(drafter), [*range(20, 120)]
    await session.propose(tokens, 2)
    tokens += [5, 6]
    proposal = await session.propose(tokens, 4)
    assert len(session.real._states.rows(0, 200)) < 70
    assert list(proposal.draft_token_ids) == drafted(drafter.engine, tokens, 4)
