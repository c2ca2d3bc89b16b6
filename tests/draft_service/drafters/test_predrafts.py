"""What a model drafts on past its proposal, on a real engine."""

from __future__ import annotations

import asyncio
import itertools
import operator
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from draft_service.drafters.fan_out import FanOut, StepTime
from draft_service.drafters.model import ModelDrafter, ModelDrafterSession
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.errors import NoFreeSlot
from outrider.protocol.messages import GREEDY, PredraftPlan, Proposal, SamplingParams
from tests.support.predrafted import Table

PROMPT = list(range(20, 40))
SAMPLED = SamplingParams(temperature=1.0, seed=3)


@pytest.fixture
async def drafter(tiny_models: Callable[..., Path]) -> AsyncIterator[ModelDrafter]:
    options = EngineOptions(str(tiny_models("llama")), "cpu", "float32", slots=8)
    drafter = ModelDrafter(Engine(options), num_predrafts=4)
    yield drafter
    drafter.close()


async def propose(
    session: ModelDrafterSession, tokens: list[int], k: int, params: SamplingParams
) -> Proposal:
    """A proposal for `tokens`, whatever the session holds."""
    return await session.propose(0, tokens, k, params, None)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_a_proposal_ends_where_the_draft_is_unsure_of_it(
    tiny_models: Callable[..., Path], params: SamplingParams
) -> None:
    engine = Engine(EngineOptions(str(tiny_models("llama")), "cpu", "float32", slots=2))
    drafter = ModelDrafter(engine, num_predrafts=0)
    whole = await propose(drafter.open_session(), PROMPT, 8, params)
    session = drafter.open_session()
    await propose(session, PROMPT, 8, params)
    chances = list(
        itertools.accumulate(
            (session._main.ranks[len(PROMPT) + i][0].prob for i in range(8)), operator.mul
        )
    )
    drafter.close()
    for num_tokens in range(1, 8):
        # Just above what the draft has left after so many tokens, and below what it had.
        unsure = ModelDrafter(
            engine, num_predrafts=0, min_confidence=1.0001 * chances[num_tokens - 1]
        )
        proposal = await propose(unsure.open_session(), PROMPT, 8, params)
        assert proposal.draft_token_ids == whole.draft_token_ids[:num_tokens]
        assert proposal.sequence_length == len(PROMPT) + num_tokens - 1
        unsure.close()


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_what_is_predrafted_is_what_would_be_proposed(
    drafter: ModelDrafter, params: SamplingParams
) -> None:
    session, fresh, table = drafter.open_session(), drafter.open_session(), Table()
    proposal = await propose(session, PROMPT, 3, params)
    draft = proposal.draft_token_ids
    session.predraft(3, PredraftPlan(4, 3), table.add)
    predrafted = await table.full(4, 3)
    assert len(predrafted) == 4
    for assumed, one in predrafted.items():
        assert one.context_length == len(PROMPT)
        assert one.forward_ns > 0
        alone = await propose(fresh, [*PROMPT, *assumed], 3, params)
        assert one.draft_token_ids == alone.draft_token_ids, assumed
        # Some draft tokens, then another than the next one, or one behind all of them.
        assert assumed[:-1] == draft[: len(assumed) - 1]
        assert len(assumed) == 4 or assumed[-1] != draft[len(assumed) - 1]
    assert sorted(map(len, predrafted))[-1] == 4


async def test_a_session_goes_on_from_any_outcome(drafter: ModelDrafter) -> None:
    """Whichever slot has most of the sequence becomes the one that goes on."""
    session, fresh = drafter.open_session(), drafter.open_session()
    tokens, table = list(PROMPT), Table()
    proposal = await propose(session, tokens, 3, GREEDY)
    session.predraft(3, PredraftPlan(4, 3), table.add)
    for turn in range(5):
        predrafted = await table.full(4, 3)
        assumed, one = sorted(predrafted.items())[turn % 4]
        # The predrafted draft is being verified: nothing is proposed, but predrafted for it.
        committed = [*tokens, *assumed]
        sequence = [*committed, *one.draft_token_ids]
        kept = len(tokens) if turn % 2 else 0
        table = Table()
        proposal = await session.propose(kept, sequence[kept:], 0, GREEDY, None)
        assert proposal.draft_token_ids == ()
        session.predraft(3, PredraftPlan(4, 3), table.add)
        tokens = committed
        for again, other in (await table.full(4, 3)).items():
            alone = await propose(fresh, [*committed, *again], 3, GREEDY)
            assert other.draft_token_ids == alone.draft_token_ids


async def test_what_would_come_too_late_is_not_drafted(
    drafter: ModelDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the engine is free when the result comes: each predraft has its first token only."""
    monkeypatch.setattr(FanOut, "has_time", lambda *_: False)
    session, table = drafter.open_session(), Table()
    await propose(session, PROMPT, 3, GREEDY)
    session.predraft(3, PredraftPlan(4, 3), table.add)
    await table.full(4, 1)
    while drafter.scheduler.num_jobs:  # noqa: ASYNC110 (nobody tells)
        await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    assert [len(one.draft_token_ids) for one in table.predrafted.values()] == [1] * 4


async def test_predrafts_that_never_ran_leave_no_holes(drafter: ModelDrafter) -> None:
    """Another session's proposal keeps them waiting until the next request drops them."""
    session, busy = drafter.open_session(), drafter.open_session()
    await propose(session, PROMPT, 3, GREEDY)
    other = asyncio.create_task(propose(busy, PROMPT[::-1], 60, GREEDY))
    await asyncio.sleep(0)
    session.predraft(3, PredraftPlan(4, 3), Table().add)
    tokens, table = [*PROMPT, 9], Table()
    await session.propose(len(PROMPT), [9], 3, GREEDY, None)
    await other
    session.predraft(3, PredraftPlan(4, 3), table.add)
    for assumed, one in (await table.full(4, 3)).items():
        alone = await propose(busy, [*tokens, *assumed], 3, GREEDY)
        assert one.draft_token_ids == alone.draft_token_ids, assumed


async def test_without_outcomes_nothing_is_predrafted(tiny_models: Callable[..., Path]) -> None:
    options = EngineOptions(str(tiny_models("llama")), "cpu", "float32", slots=2)
    drafter, table = ModelDrafter(Engine(options), num_predrafts=0), Table()
    session = drafter.open_session()
    await propose(session, PROMPT, 3, GREEDY)
    session.predraft(3, PredraftPlan(4, 3), table.add)
    await propose(session, PROMPT[::-1], 8, GREEDY)
    assert table.predrafted == {}
    drafter.close()


async def test_an_outcome_nobody_thought_of_is_proposed_for_as_ever(drafter: ModelDrafter) -> None:
    session, fresh, table = drafter.open_session(), drafter.open_session(), Table()
    await propose(session, PROMPT, 3, GREEDY)
    session.predraft(3, PredraftPlan(4, 3), table.add)
    tokens = [*PROMPT, 7, 7]
    proposal = await session.propose(len(PROMPT), [7, 7], 4, GREEDY, None)
    assert proposal.draft_token_ids == (await propose(fresh, tokens, 4, GREEDY)).draft_token_ids


async def test_nothing_of_an_old_preparation_arrives_after_the_next_request(
    drafter: ModelDrafter,
) -> None:
    session, stale = drafter.open_session(), Table()
    for turn in range(20):
        await propose(session, [*PROMPT, turn], 1, GREEDY)
        stale.predrafted.clear()
        session.predraft(1, PredraftPlan(4, 8), stale.add)
        await asyncio.sleep(0)
    await propose(session, PROMPT, 1, GREEDY)
    stale.predrafted.clear()
    await propose(session, [*PROMPT, 5], 4, GREEDY)  # many passes later
    assert stale.predrafted == {}


async def test_the_context_limit_ends_predrafts(drafter: ModelDrafter) -> None:
    session, table = drafter.open_session(), Table()
    limit = 512
    await propose(session, [5] * (limit - 3), 2, GREEDY)
    session.predraft(2, PredraftPlan(4, 3), table.add)
    await propose(session, [5] * limit, 0, GREEDY)
    assert table.predrafted == {}


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
async def test_slots_that_no_correction_wants_go_to_other_guesses(
    drafter: ModelDrafter, params: SamplingParams
) -> None:
    """Without draft tokens, all outcomes are guesses of the target's next token."""
    session, fresh, table = drafter.open_session(), drafter.open_session(), Table()
    await propose(session, PROMPT, 0, params)
    session.predraft(0, PredraftPlan(4, 2), table.add)
    predrafted = await table.full(4, 2)
    assert all(len(assumed) == 1 for assumed in predrafted)
    for assumed, one in predrafted.items():
        alone = await propose(fresh, [*PROMPT, *assumed], 2, params)
        assert one.draft_token_ids == alone.draft_token_ids
    guess = await propose(fresh, PROMPT, 1, params)
    assert guess.draft_token_ids in predrafted


async def test_some_tokens_are_read_by_the_pass_that_drafts_after_them(
    drafter: ModelDrafter,
) -> None:
    """A pass of their own would delay what is predrafted behind them."""
    session, fresh, table = drafter.open_session(), drafter.open_session(), Table()
    await propose(session, PROMPT, 2, GREEDY)
    passes = drafter.engine.passes
    before = sum(passes.tokens.counts)
    followed = await session.propose(len(PROMPT), [7, 8, 9], 0, GREEDY, None)
    assert (followed.draft_token_ids, followed.sequence_length) == ((), len(PROMPT) + 3)
    assert sum(passes.tokens.counts) == before
    session.predraft(2, PredraftPlan(1, 2), table.add)
    [(assumed, one)] = (await table.full(1, 2)).items()
    alone = await propose(fresh, [*PROMPT, 7, 8, 9, *assumed[2:]], 2, GREEDY)
    assert one.draft_token_ids == alone.draft_token_ids


async def test_a_long_prompt_is_read_at_once(drafter: ModelDrafter) -> None:
    session, passes = drafter.open_session(), drafter.engine.passes
    before = sum(passes.tokens.counts)
    await propose(session, PROMPT, 0, GREEDY)
    assert sum(passes.tokens.counts) == before + 1


async def test_the_draft_chooses_how_many_outcomes_are_worth_it(
    tiny_models: Callable[..., Path],
) -> None:
    engine = Engine(EngineOptions(str(tiny_models("llama")), "cpu", "float32", slots=8))
    never = StepTime(first_ns=1e15)  # no pass ends in time
    for step_time, num_predrafted in ((StepTime(), 4), (never, 0)):
        drafter = ModelDrafter(engine, num_predrafts=4, step_time=step_time)
        session, unlimited, table = drafter.open_session(), PredraftPlan(4, 3, True), Table()
        for _ in range(2):  # behind the prompt, whose reading tells nothing, and once more
            await propose(session, PROMPT, 3, GREEDY)
            session.predraft(3, unlimited, Table().add)
            assert session._predrafts is not None
            assert len(session._predrafts._jobs) == 4
        await propose(session, PROMPT, 3, GREEDY)
        session.predraft(3, unlimited, table.add)
        await table.full(num_predrafted, 3)
        assert session._predrafts is not None
        assert len(session._predrafts._jobs) == num_predrafted
        session.predraft(3, PredraftPlan(4, 3), table.add)  # the request says how many
        assert len(await table.full(4, 3)) == 4
        drafter.close()


async def test_slots_of_all_predrafts_come_back(drafter: ModelDrafter) -> None:
    sessions = [drafter.open_session(), drafter.open_session()]
    assert drafter.num_free_slots == 0
    with pytest.raises(NoFreeSlot):
        drafter.open_session()
    for session in sessions:
        await propose(session, PROMPT, 2, GREEDY)
        session.predraft(2, PredraftPlan(4, 30), Table().add)
        session.close()
    fresh = await propose(await open_when_free(drafter), PROMPT, 2, GREEDY)
    assert len(fresh.draft_token_ids) == 2


async def open_when_free(drafter: ModelDrafter) -> ModelDrafterSession:
    """A slot that a pass uses is free after it."""
    async with asyncio.timeout(30):
        while not drafter.num_free_slots:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.001)
    return drafter.open_session()
