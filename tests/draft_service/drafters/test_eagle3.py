"""Sessions of feature drafts against drafting from scratch on the same engine."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from draft_service.drafters.drafting import NUM_RUNNERS_UP, Sampler
from draft_service.drafters.eagle3 import Eagle3Drafter, Eagle3Session
from draft_service.drafters.fan_out import FanOut, StepTime
from outrider.engine.chunk import Chunk, Features
from outrider.engine.eagle3.engine import Eagle3Engine
from outrider.engine.options import EngineOptions
from outrider.errors import InvalidRequest
from outrider.protocol.hidden_states import HiddenStates
from outrider.protocol.messages import GREEDY, PredraftPlan, Proposal, SamplingParams
from outrider.sampling.recorded_sampling import SamplingSpec
from tests.support.models.eagle3 import make_eagle3
from tests.support.predrafted import Table

PROMPT = list(range(20, 40))
SAMPLED = SamplingParams(temperature=1.0, seed=3)
NUM_SLOTS = 9
REFERENCE = NUM_SLOTS - 1  # a slot that no session takes, of two sessions with four slots each
WIDTH = 128


def rows_of(tokens: Sequence[int]) -> Tensor:
    """Hidden states of all tokens: a function of the tokens up to each."""
    rows = []
    for end in range(1, len(tokens) + 1):
        seed = zlib.crc32(str(list(tokens[:end])).encode())
        rows.append(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)))
    return torch.stack(rows).bfloat16().float()


def states_of(tokens: Sequence[int], first: int, end: int | None = None) -> HiddenStates:
    """Those from `first` up to `end`, or up to the last token but one."""
    end = len(tokens) - 1 if end is None else end
    rows = rows_of(tokens)[first:end].bfloat16()
    return HiddenStates(first, end - first, rows.view(torch.uint8).numpy().tobytes())


class Session:
    """A session, and the committed tokens that it has been told."""

    def __init__(self, drafter: Eagle3Drafter) -> None:
        self.real: Eagle3Session = drafter.open_session()
        self._tokens: list[int] = []
        self._num_states = 0

    async def propose(
        self,
        tokens: Sequence[int],
        k: int,
        params: SamplingParams = GREEDY,
        draft: Sequence[int] = (),
        first: int | None = None,
    ) -> Proposal:
        """Tells it what is new in `tokens`, hidden states from `first` on."""
        context_length = len(self._tokens)
        assert list(tokens[:context_length]) == self._tokens
        states = states_of(tokens, self._num_states if first is None else first)
        new = [*tokens[context_length:], *draft]
        proposal = await self.real.propose(context_length, new, k, params, None, states)
        self._tokens, self._num_states = list(tokens), len(tokens) - 1
        return proposal


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Eagle3Engine:
    folder = make_eagle3(tmp_path_factory.mktemp("eagle3"), flags=("fc_norm", "norm_output"))
    options = EngineOptions(
        str(folder), "cpu", "float32", slots=NUM_SLOTS, max_context_length=128, is_draft=True
    )
    return Eagle3Engine(options)


@pytest.fixture
async def drafter(engine: Eagle3Engine) -> AsyncIterator[Eagle3Drafter]:
    drafter = Eagle3Drafter(engine, num_predrafts=4)
    yield drafter
    drafter.scheduler.close()


def drafted(
    engine: Eagle3Engine,
    tokens: Sequence[int],
    k: int,
    params: SamplingParams = GREEDY,
    draft: Sequence[int] = (),
    first: int = 0,
) -> list[int]:
    """What k steps draft after `tokens`, with the states of the target, and `draft`, without."""
    unread, found = list(draft), []

    def follow(choices: list[object]) -> int:
        found.append(choices[0].token_id)  # type: ignore[attr-defined]
        return unread.pop(0) if unread else found[-1]

    rows = rows_of(tokens)[first:-1]
    features = Features(rows, False, first + 1, follow)  # type: ignore[arg-type]
    chunk = Chunk(REFERENCE, 0, tokens[first + 1 :], 1, features=features)
    engine.choose([chunk], [SamplingSpec(params, 100, 1 + NUM_RUNNERS_UP)], len(draft) + k)
    return found[len(draft) :]


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
