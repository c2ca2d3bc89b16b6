"""Choices that are recorded with their passes are those of `outrider.sampling.sampler`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draft_service.drafters.model import ModelDrafter
from outrider.engine.chunk import Chunk
from outrider.engine.cuda import static_choices, static_pass
from outrider.engine.cuda.static_choices import RowStates
from outrider.engine.cuda.static_passes import Record
from outrider.engine.engine import Engine
from outrider.protocol.messages import GREEDY, SamplingParams
from outrider.sampling.recorded_sampling import (
    RowSettings,
    SamplingSpec,
    rank_rows,
    settings_of,
    work_of,
)
from outrider.sampling.sampler import Choice, choose_tokens, rank_tokens
from outrider.serving.loading import warm_up
from target_service.verifier import Verifier
from tests.outrider.engine.cuda.test_static_passes import IDS, Again, Recording, engine_of

pytestmark = pytest.mark.usefixtures("as_on_a_gpu")

SAMPLED = SamplingParams(temperature=1.0, seed=3)
FILTERED = SamplingParams(temperature=0.7, top_k=40, top_p=0.9, min_p=0.01, seed=5)
FEW = SamplingParams(temperature=0.5, top_k=3, seed=2**64 - 1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTH = 20  # of what each slot has read


class Setting:
    """An engine that chooses by itself, and one whose logits are chosen from."""

    def __init__(self, folder: Path, record: Record = Again) -> None:
        self.folder = folder
        self.plain = engine_of(folder, DEVICE)
        self.spec = engine_of(folder, DEVICE, graphs=True)
        if DEVICE == "cpu":
            self.spec.use_graphs(record)
            self.spec.use_choices()
        self.token_ids = self.plain.logit_token_ids
        self.fill()

    def fill(self) -> None:
        for engine in (self.plain, self.spec):
            engine.forward([Chunk(slot, 0, IDS[slot : slot + LENGTH], 1) for slot in range(3)])

    def expected(
        self, chunks: Sequence[Chunk], specs: Sequence[SamplingSpec], num_steps: int
    ) -> list[list[list[Choice]]]:
        """By passes of their own."""
        chosen: list[list[list[Choice]]] = [[] for _ in chunks]
        for _ in range(num_steps):
            logits = self.plain.forward(chunks)
            for ranks, chunk, spec, rows in zip(chosen, chunks, specs, logits, strict=True):
                columns = slice(spec.num_ids)
                ids = self.token_ids[columns]
                for index, row in enumerate(rows, chunk.end - chunk.num_logits + 1):
                    one = row[None, columns]
                    ranks.append(rank_tokens(one, ids, spec.params, index, spec.width))
            chunks = [
                Chunk(chunk.slot, chunk.end, [ranks[-1][0].token_id], 1)
                for chunk, ranks in zip(chunks, chosen, strict=True)
            ]
        return chosen

    def check(self, chunks: Sequence[Chunk], specs: Sequence[SamplingSpec], num_steps: int) -> None:
        found = self.spec.choose(chunks, specs, num_steps)
        expected = self.expected(chunks, specs, num_steps)
        assert tokens_of(found) == tokens_of(expected)
        for choice, other in zip(flat(found), flat(expected), strict=True):
            # `rank_tokens` leaves tokens out of it that cannot be chosen.
            assert choice.prob == pytest.approx(other.prob, abs=1e-3)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_pass, "SHORTEST_LENGTH", 32)


@cache
def made(folder: Path, record: Record = Again, role: str = "") -> Setting:
    return Setting(folder, record)


@pytest.fixture
def setting(tiny_models: Callable[..., Path]) -> Setting:
    """One for all tests that leave its engines as they are."""
    setting = made(tiny_models("llama"))
    setting.fill()
    return setting


def flat(chosen: Any) -> list[Choice]:
    return [choice for ranks in chosen for choices in ranks for choice in choices]


def tokens_of(chosen: Any) -> Any:
    return [[[choice.token_id for choice in choices] for choices in ranks] for ranks in chosen]


@pytest.mark.parametrize(
    ("params", "record"),
    [
        ([GREEDY], Again),
        ([SAMPLED], Again),
        ([FILTERED], Again),
        ([GREEDY, GREEDY], Again),
        ([FEW, GREEDY], Again),
        ([SAMPLED, GREEDY, FILTERED], Again),
        ([GREEDY, FILTERED], Recording),
    ],
)
def test_a_draft_of_several_steps(
    params: list[SamplingParams], record: Record, tiny_models: Callable[..., Path]
) -> None:
    setting = made(tiny_models("llama", num_hidden_layers=1), record)
    setting.fill()
    specs = [SamplingSpec(each, num_ids=200, width=5) for each in params]
    for num_steps in (2, 1):  # the second one finds recordings
        chunks = [
            Chunk(slot, LENGTH - slot, IDS[30 + num_steps : 31 + num_steps + slot], 1)
            for slot in range(len(params))
        ]
        setting.check(chunks, specs, num_steps)


@pytest.mark.parametrize("params", [[GREEDY], [SAMPLED], [FILTERED, GREEDY, SAMPLED]])
def test_a_verification(params: list[SamplingParams], setting: Setting) -> None:
    specs = [SamplingSpec(each, len(setting.token_ids)) for each in params]
    chunks = [Chunk(slot, LENGTH, IDS[50 : 54 + slot], 3 + slot % 2) for slot in range(len(params))]
    setting.check(chunks, specs, 1)
    expected = [
        choose_tokens(rows, setting.token_ids, each, chunk.end - chunk.num_logits + 1)
        for rows, each, chunk in zip(setting.plain.forward(chunks), params, chunks, strict=True)
    ]
    chosen = setting.spec.choose(chunks, specs)
    assert [[choices[0].token_id for choices in ranks] for ranks in chosen] == expected


def test_the_first_of_several_that_are_best() -> None:
    """As greedy choices are everywhere, however many rows a pass has."""
    logits = torch.zeros(2, 300)
    logits[:, [7, 31, 200]] = 1.0
    states = RowStates(2, 1, torch.device("cpu"))
    settings = states.settings(1)
    settings.num_ids.fill_(300)
    work = work_of([SamplingSpec(GREEDY, 300)])
    ranked = rank_rows(logits, torch.arange(300), torch.tensor([4, 5]), settings, work, 1)
    assert ranked[:, 0, 0].tolist() == [7, 7] == choose_tokens(logits, torch.arange(300), GREEDY, 4)


def test_there_must_be_room_for_all_steps(setting: Setting) -> None:
    [chunk] = [Chunk(0, LENGTH, IDS[:2], 1)]
    specs = [SamplingSpec(GREEDY, 200, 5)]
    chosen = setting.spec.choose([chunk], specs, 1000)
    assert [len(ranks) for ranks in chosen] == [static_choices.MAX_STEPS]
    assert setting.spec.max_context_length == 100
    late = Chunk(0, 97, IDS[:2], 1)
    assert isinstance(setting.spec.choose([late], specs, 3)[0], Tensor)
    assert not isinstance(setting.spec.choose([late], specs, 2)[0], Tensor)


def test_what_is_not_recorded_is_not_chosen(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Chunk(0, 0, IDS[:40], 1)
    several = Chunk(0, LENGTH, IDS[:3], 3)
    monkeypatch.setattr(static_choices, "_MOST_SCORES", 3 * 200)
    for engine, chunk, params, num_steps in (
        (setting.spec, long, GREEDY, 1),
        (setting.spec, several, GREEDY, 2),  # after which of them?
        (setting.spec, several, SAMPLED, 1),  # too many scores
        (setting.plain, several, GREEDY, 1),  # without recordings
    ):
        [logits] = engine.choose([chunk], [SamplingSpec(params, 200, 5)], num_steps)
        assert isinstance(logits, Tensor)
        assert len(logits) == chunk.num_logits


def test_steps_that_cannot_be_recorded_are_left_to_the_next_pass(
    tiny_models: Callable[..., Path],
) -> None:
    def refuse(run: Callable[[], Tensor]) -> Again:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    setting = Setting(tiny_models("llama"))
    chunk, spec = Chunk(0, LENGTH, IDS[:3], 1), SamplingSpec(GREEDY, 200, 4)
    setting.spec.choose([chunk], [spec])
    assert setting.spec.graphs is not None
    setting.spec.graphs.record = refuse
    chosen = setting.spec.choose([chunk], [spec], 4)
    assert [len(ranks) for ranks in chosen] == [1]


def test_slots_are_copied_once(setting: Setting) -> None:
    """A copy of what was copied over is another, whether or not the engine chooses after it."""
    for slot in range(3):
        setting.spec.forward([Chunk(slot, 0, IDS[30 * slot : 30 * slot + 20])])
    chunks = [  # slot 0 becomes what 1 is, and that then what 2 is
        Chunk(0, 20, IDS[:17], 1, copy_from=(1, 0)),
        Chunk(1, 20, IDS[:17], 1, copy_from=(2, 0)),
    ]
    found = setting.spec.choose(chunks, [SamplingSpec(GREEDY, 200)] * 2)
    for slot, row in enumerate(found):
        source = IDS[30 * (slot + 1) : 30 * (slot + 1) + 20]
        [expected] = setting.plain.forward([Chunk(0, 0, [*source, *IDS[:17]], 1)])
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)


def test_a_row_without_numbers_is_no_error_of_the_others() -> None:
    """On a GPU an index that is out of bounds ends all that it does."""
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    logits[0] = math.nan
    settings = torch.tensor([settings_of(SamplingSpec(FILTERED, 300), 300)] * 2).t().contiguous()
    work = work_of([SamplingSpec(FILTERED, 300)])
    ids, indices = torch.arange(300), torch.tensor([4, 4])
    ranked = rank_rows(logits, ids, indices, RowSettings.of(settings), work, 1)
    assert ranked[1, 0, 0] == choose_tokens(logits[1:], ids, FILTERED, 4)[0]


@pytest.mark.parametrize("num_choices", [1, 5])
def test_one_session_finds_recordings_when_a_model_is_loaded(
    num_choices: int, setting: Setting
) -> None:
    engine = setting.spec
    warm_up(engine, num_choices)
    assert engine.choices is not None
    before = engine.choices.num_recordings
    for params, start in itertools.product((GREEDY, SAMPLED, FILTERED), (0, 20, 70)):
        spec = SamplingSpec(params, len(setting.token_ids), num_choices)
        for width in range(1, 10):
            num_logits, num_steps = (width, 1) if num_choices == 1 else (1, 8)
            chunk = Chunk(0, start, IDS[:width], num_logits)
            [chosen] = engine.choose([chunk], [spec], num_steps)
            assert len(chosen) == (width if num_choices == 1 else num_steps)
        if num_choices > 1:  # what is predrafted for
            for count in (1, 2, 3, 4):
                chunks = [Chunk(slot, start, [7], 1) for slot in range(count)]
                assert len(engine.choose(chunks, [spec] * count)) == count
    assert engine.choices.num_recordings == before


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, FILTERED])
async def test_services_choose_the_same(params: SamplingParams, setting: Setting) -> None:
    """Proposals, some of several tokens, and results."""
    draft, target = setting, made(setting.folder, role="target")

    async def answers(draft_engine: Engine, target_engine: Engine) -> list[Any]:
        drafter, verifier = ModelDrafter(draft_engine, 1), Verifier(target_engine)
        proposer, judge = drafter.open_session(), verifier.open_session()
        try:
            found: list[Any] = []
            tokens, sent = IDS[:24], 0
            for k in (4, 0, 5):
                proposal = await proposer.propose(0, tokens, k, params, None)
                guesses = [*proposal.draft_token_ids, 7]  # the last one is hardly right
                result = await judge.verify(sent, tokens[sent:], guesses, params)
                found += [guesses, result.num_accepted_tokens, result.next_token_id]
                sent = len(tokens) + result.num_accepted_tokens
                accepted = guesses[: result.num_accepted_tokens]
                tokens = [*tokens, *accepted, result.next_token_id]
            return found
        finally:
            proposer.close()
            judge.close()
            drafter.close()
            verifier.close()

    expected = await answers(draft.plain, target.plain)
    assert await answers(draft.spec, target.spec) == expected
    for each in (draft, target):
        assert each.spec.choices is not None
        assert each.spec.choices.num_recordings >= 2
