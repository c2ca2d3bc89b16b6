"""Choices that are recorded with their passes are those of `outrider.sampling`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draft_service.drafters.model import ModelDrafter
from outrider.engine import static_choices, static_pass
from outrider.engine.chunk import Chunk
from outrider.engine.model import Engine
from outrider.engine.recorded_sampling import Choosing, kind_of, rank_rows
from outrider.engine.static_choices import Steps
from outrider.loading import warm_up
from outrider.messages import GREEDY, SamplingParams
from outrider.sampling import Choice, choose_tokens, rank_tokens
from target_service.verifier import Verifier
from tests.unit.test_static_passes import IDS, Recording, engine_of

SAMPLED = SamplingParams(temperature=1.0, seed=3)
FILTERED = SamplingParams(temperature=0.7, top_k=40, top_p=0.9, min_p=0.01, seed=5)
FEW = SamplingParams(temperature=0.5, top_k=3, seed=2**64 - 1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTH = 20  # of what each slot has read


class Setting:
    """An engine that chooses by itself, and one whose logits are chosen from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plain = engine_of(folder, DEVICE)
        self.choosing = engine_of(folder, DEVICE, graphs=True)
        if DEVICE == "cpu":
            self.choosing.use_graphs(Recording)
        self.token_ids = self.plain.logit_token_ids
        for engine in (self.plain, self.choosing):
            engine.forward([Chunk(slot, 0, IDS[slot : slot + LENGTH], 1) for slot in range(3)])

    def expected(
        self, chunks: Sequence[Chunk], choosings: Sequence[Choosing], num_steps: int
    ) -> list[list[list[Choice]]]:
        """By passes of their own."""
        chosen: list[list[list[Choice]]] = [[] for _ in chunks]
        for _ in range(num_steps):
            logits = self.plain.forward(chunks)
            for ranks, chunk, choosing, rows in zip(chosen, chunks, choosings, logits, strict=True):
                columns = slice(choosing.num_ids)
                ids = self.token_ids[columns]
                for index, row in enumerate(rows, chunk.end - chunk.num_logits + 1):
                    one = row[None, columns]
                    ranks.append(rank_tokens(one, ids, choosing.params, index, choosing.width))
            chunks = [
                Chunk(chunk.slot, chunk.end, [ranks[-1][0].token_id], 1)
                for chunk, ranks in zip(chunks, chosen, strict=True)
            ]
        return chosen

    def check(self, chunks: Sequence[Chunk], choosings: Sequence[Choosing], num_steps: int) -> None:
        found = self.choosing.choose(chunks, choosings, num_steps)
        expected = self.expected(chunks, choosings, num_steps)
        assert tokens_of(found) == tokens_of(expected)
        for choice, other in zip(flat(found), flat(expected), strict=True):
            # `rank_tokens` leaves tokens out of it that cannot be chosen.
            assert choice.prob == pytest.approx(other.prob, abs=1e-3)


@pytest.fixture
def setting(tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(static_pass, "SHORTEST_LENGTH", 32)
    return Setting(tiny_models("llama"))


def flat(chosen: Any) -> list[Choice]:
    return [choice for ranks in chosen for choices in ranks for choice in choices]


def tokens_of(chosen: Any) -> Any:
    return [[[choice.token_id for choice in choices] for choices in ranks] for ranks in chosen]


@pytest.mark.parametrize(
    "params",
    [[GREEDY], [SAMPLED], [FILTERED], [GREEDY, GREEDY], [GREEDY, SAMPLED, FILTERED], [FEW, GREEDY]],
)
def test_a_draft_of_several_steps(params: list[SamplingParams], setting: Setting) -> None:
    choosings = [Choosing(each, num_ids=200, width=5) for each in params]
    for num_steps in (3, 1, 4):  # the later ones find recordings
        chunks = [
            Chunk(slot, LENGTH - slot, IDS[30 + num_steps : 31 + num_steps + slot], 1)
            for slot in range(len(params))
        ]
        setting.check(chunks, choosings, num_steps)


@pytest.mark.parametrize("params", [[GREEDY], [SAMPLED], [FILTERED, GREEDY, SAMPLED]])
def test_a_verification(params: list[SamplingParams], setting: Setting) -> None:
    choosings = [Choosing(each, len(setting.token_ids)) for each in params]
    chunks = [Chunk(slot, LENGTH, IDS[50 : 54 + slot], 3 + slot % 2) for slot in range(len(params))]
    setting.check(chunks, choosings, 1)
    expected = [
        choose_tokens(rows, setting.token_ids, each, chunk.end - chunk.num_logits + 1)
        for rows, each, chunk in zip(setting.plain.forward(chunks), params, chunks, strict=True)
    ]
    chosen = setting.choosing.choose(chunks, choosings)
    assert [[choices[0].token_id for choices in ranks] for ranks in chosen or ()] == expected


def test_the_first_of_several_that_are_best() -> None:
    """As greedy choices are everywhere, however many rows a pass has."""
    logits = torch.zeros(2, 300)
    logits[:, [7, 31, 200]] = 1.0
    steps = Steps(2, 1, torch.device("cpu"))
    steps.settings.num_ids.fill_(300)
    kind = kind_of([Choosing(GREEDY, 300)])
    ranked = rank_rows(logits, torch.arange(300), torch.tensor([4, 5]), steps.settings, kind, 1)
    assert ranked[:, 0, 0].tolist() == [7, 7] == choose_tokens(logits, torch.arange(300), GREEDY, 4)


def test_there_must_be_room_for_all_steps(setting: Setting) -> None:
    [chunk] = [Chunk(0, LENGTH, IDS[:2], 1)]
    choosings = [Choosing(GREEDY, 200, 5)]
    most = setting.choosing.max_context_length - chunk.end + 1
    assert setting.choosing.max_context_length == 100
    static_choices_most = min(static_choices.MAX_STEPS, most)
    chosen = setting.choosing.choose([chunk], choosings, 1000)
    assert [len(ranks) for ranks in chosen or ()] == [static_choices_most]
    late = Chunk(0, 97, IDS[:2], 1)
    assert setting.choosing.choose([late], choosings, 3) is None
    assert setting.choosing.choose([late], choosings, 2) is not None


def test_what_is_not_recorded_is_not_chosen(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    choosings = [Choosing(GREEDY, 200, 5)]
    long = Chunk(0, 0, IDS[:40], 1)
    assert setting.choosing.choose([long], choosings) is None
    several = Chunk(0, LENGTH, IDS[:3], 3)
    assert setting.choosing.choose([several], choosings, 2) is None  # after which of them?
    assert setting.plain.choose([several], choosings) is None  # without recordings
    monkeypatch.setattr(static_choices, "_MOST_SCORES", 3 * 200)
    assert setting.choosing.choose([several], choosings) is None


def test_steps_that_cannot_be_recorded_are_left_to_the_next_pass(
    tiny_models: Callable[..., Path],
) -> None:
    def only_chunks(run: Callable[[], Tensor]) -> Recording:
        recording = Recording(run)
        if recording.replay().shape[-2:] == (5, 2) and len(num_recordings) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        num_recordings.append(1)
        return recording

    num_recordings: list[int] = []
    engine = engine_of(tiny_models("llama"))
    engine.use_graphs(only_chunks)
    chosen = engine.choose([Chunk(0, 0, IDS[:3], 1)], [Choosing(GREEDY, 200, 5)], 4)
    assert [len(ranks) for ranks in chosen or ()] == [1]


@pytest.mark.parametrize("num_choices", [1, 5])
def test_one_session_finds_recordings_when_a_model_is_loaded(
    num_choices: int, setting: Setting
) -> None:
    engine = setting.choosing
    warm_up(engine, num_choices)
    assert engine.choices is not None
    before = engine.choices.num_recordings
    choosing = Choosing(GREEDY, len(setting.token_ids), num_choices)
    for start in (0, 20, 70):
        for width in range(1, 10):
            num_logits, num_steps = (width, 1) if num_choices == 1 else (1, 8)
            chunk = Chunk(0, start, IDS[:width], num_logits)
            assert engine.choose([chunk], [choosing], num_steps) is not None
    assert engine.choices.num_recordings == before


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, FILTERED])
async def test_services_choose_the_same(params: SamplingParams, setting: Setting) -> None:
    """Proposals, some of several tokens, and verdicts."""
    draft, target = setting, Setting(setting.folder)

    async def answers(draft_engine: Engine, target_engine: Engine) -> list[Any]:
        drafter, verifier = ModelDrafter(draft_engine, 1), Verifier(target_engine)
        proposer, judge = drafter.open_session(), verifier.open_session()
        try:
            found: list[Any] = []
            tokens, sent = IDS[:24], 0
            for k in (4, 0, 5):
                proposal = await proposer.propose(0, tokens, k, params, None)
                guesses = [*proposal.draft_token_ids, 7]  # the last one is hardly right
                verdict = await judge.verify(sent, tokens[sent:], guesses, params)
                found += [guesses, verdict.num_accepted_tokens, verdict.next_token_id]
                sent = len(tokens) + verdict.num_accepted_tokens
                accepted = guesses[: verdict.num_accepted_tokens]
                tokens = [*tokens, *accepted, verdict.next_token_id]
            return found
        finally:
            proposer.close()
            judge.close()
            drafter.close()
            verifier.close()

    expected = await answers(draft.plain, target.plain)
    assert await answers(draft.choosing, target.choosing) == expected
    for each in (draft, target):
        assert each.choosing.choices is not None
        assert each.choosing.choices.num_recordings >= 2
