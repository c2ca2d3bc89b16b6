"""The draft that says what was recorded, wrong as often as it is told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from draft_service.drafters.replay import (
    RUNNER_UP_CHANCES,
    ReplayDrafter,
    ReplaySampler,
    Script,
    draw_ranks,
)
from draft_service.service import load_drafter
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.errors import ConfigurationError, InvalidRequest
from outrider.protocol.hidden_states import HiddenStates
from outrider.protocol.messages import GREEDY, Predraft, PredraftPlan
from tests.support.models.eagle3 import make_eagle3

PROMPT = list(range(20, 40))
OUTPUT = [7, 5, 9, 8, 6, 11, 10, 13, 12, 15, 14, 16]
TEXT = [*PROMPT, *OUTPUT]


@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.8, 1.0])
def test_tokens_are_right_as_often_as_is_said(acceptance: float) -> None:
    ranks = draw_ranks(range(20_000), acceptance, seed=1)
    assert ranks.count(0) / len(ranks) == pytest.approx(acceptance, abs=0.01)
    wrong = [rank for rank in ranks if rank]
    for rank, chance in enumerate(RUNNER_UP_CHANCES, 1):
        if wrong:
            assert wrong.count(rank) / len(wrong) == pytest.approx(chance, abs=0.02)


def test_draws_are_a_texts_own_and_repeat() -> None:
    text, other = range(100), range(1, 101)
    assert draw_ranks(text, 0.5, 1) == draw_ranks(text, 0.5, 1)
    assert draw_ranks(text, 0.5, 1) != draw_ranks(other, 0.5, 1)
    assert draw_ranks(text, 0.5, 1) != draw_ranks(text, 0.5, 2)


@pytest.mark.parametrize("likeliest", [3, 5])  # 5: the model itself is right
@pytest.mark.parametrize("rank", [0, 1, 3, 99])
def test_the_texts_token_stands_where_it_was_drawn(rank: int, likeliest: int) -> None:
    sampler = ReplaySampler(GREEDY, torch.arange(10), (), text=[5], ranks=[rank], acceptance=0.8)
    logits = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8, 9, 0]])
    logits[0, likeliest] = 20
    choices = sampler.rank(logits, 0)
    ids = [choice.token_id for choice in choices]
    assert len(set(ids)) == len(ids) >= 4
    assert (ids.index(5) if 5 in ids else 99) == rank
    assert choices[0].prob == 0.8
    assert choices[1].prob == pytest.approx(0.2 * RUNNER_UP_CHANCES[0])


def test_behind_the_text_the_model_speaks() -> None:
    sampler = ReplaySampler(GREEDY, torch.arange(3), (), text=[5], ranks=[0], acceptance=0.8)
    assert sampler.rank(torch.tensor([[1.0, 3, 2]]), 1)[0].token_id == 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "script.json"


@pytest.fixture
def drafter(tiny_models: Callable[..., Path], path: Path) -> ReplayDrafter:
    options = EngineOptions(str(tiny_models("llama")), "cpu", "float32", slots=8)
    return ReplayDrafter(Engine(options), 4, path)


async def test_a_perfect_draft_says_and_predrafts_the_text(
    drafter: ReplayDrafter, path: Path
) -> None:
    Script("m", 1.0, [[1, 2, 3], TEXT]).write(path)
    session = drafter.open_session()
    await session.propose(0, PROMPT, 0, GREEDY, None)
    proposal = await session.propose(len(PROMPT), OUTPUT[:1], 3, GREEDY, None)
    assert list(proposal.draft_token_ids) == OUTPUT[1:4]
    grown: asyncio.Queue[list[Predraft]] = asyncio.Queue()
    session.predraft(3, PredraftPlan(4, 3), grown.put_nowait)
    right: list[int] = []
    while len(right) < 3:
        for predrafted in await asyncio.wait_for(grown.get(), 30):
            if list(predrafted.assumed_token_ids) == OUTPUT[1:5]:
                right = list(predrafted.draft_token_ids)
    assert right == OUTPUT[5:8]
    session.close()
    drafter.close()


async def test_a_useless_draft_is_never_right_and_predrafts_corrections_that_are(
    drafter: ReplayDrafter, path: Path
) -> None:
    Script("m", 0.0, [TEXT]).write(path)
    ranks = draw_ranks(TEXT, 0.0, 0)
    first = next(i for i in range(len(PROMPT) + 1, len(TEXT)) if ranks[i] == 1)
    session = drafter.open_session()
    await session.propose(0, PROMPT, 0, GREEDY, None)
    proposal = await session.propose(len(PROMPT), TEXT[len(PROMPT) : first], 2, GREEDY, None)
    assert proposal.draft_token_ids[0] != TEXT[first]
    grown: asyncio.Queue[list[Predraft]] = asyncio.Queue()
    session.predraft(2, PredraftPlan(4, 1), grown.put_nowait)
    assumed: set[tuple[int, ...]] = set()
    while (TEXT[first],) not in assumed:
        predrafted = await asyncio.wait_for(grown.get(), 30)
        assumed |= {one.assumed_token_ids for one in predrafted}
    session.close()
    drafter.close()


async def test_another_prompt_is_refused_and_a_new_script_is_read(
    drafter: ReplayDrafter, path: Path
) -> None:
    Script("m", 1.0, [TEXT]).write(path)
    session = drafter.open_session()
    with pytest.raises(InvalidRequest, match="no recorded text"):
        await session.propose(0, [1, 2], 3, GREEDY, None)
    session.close()
    Script("m", 1.0, [[1, 2, 3]]).write(path)
    session = drafter.open_session()
    proposal = await session.propose(0, [1, 2], 1, GREEDY, None)
    assert proposal.draft_token_ids == (3,)
    session.close()
    drafter.close()


async def test_a_feature_draft_replays_too(tmp_path: Path, path: Path) -> None:
    Script(str(make_eagle3(tmp_path / "eagle3")), 1.0, [TEXT]).write(path)
    options = EngineOptions(f"replay:{path}", "cpu", "float32", slots=1)
    served, drafter = load_drafter(options, num_predrafts=2)
    assert served.info.reads_hidden_states is not None
    session = drafter.open_session()
    num_tokens = len(PROMPT)
    states = HiddenStates(0, num_tokens - 1, bytes(2 * 128 * (num_tokens - 1)))
    proposal = await session.propose(0, PROMPT, 3, GREEDY, None, states)
    assert list(proposal.draft_token_ids) == TEXT[num_tokens : num_tokens + 3]
    session.close()
    drafter.close()


@pytest.mark.parametrize(
    "content",
    [None, "not json", "[]", '{"model": "m"}', '{"model": "m", "acceptance": 1.5}', '{"a": 1}'],
)
def test_a_script_that_cannot_be_read_is_named(content: str | None, path: Path) -> None:
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"cannot replay .*script\.json"):
        Script.read(path)


def test_the_service_shows_that_its_draft_replays(
    tiny_models: Callable[..., Path], path: Path
) -> None:
    Script(str(tiny_models("llama")), 0.5, [TEXT]).write(path)
    assert json.loads(path.read_text())["texts"] == [TEXT]
    options = EngineOptions(f"replay:{path}", "cpu", "float32", slots=2)
    served, drafter = load_drafter(options, num_predrafts=2)
    assert isinstance(drafter, ReplayDrafter)
    assert dataclasses.asdict(served.info)["model_id"] == f"replay:{path}"
    assert drafter.num_free_slots == served.info.num_slots == 2
    drafter.close()
