"""Weights that are NaN: the request that meets them fails, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import load_file, save_file

from outrider.engine.chunk import Chunk
from outrider.engine.engine import Engine
from outrider.engine.scheduling.batch_limits import BatchLimits
from outrider.engine.scheduling.job import Job
from outrider.errors import NotANumber, UnsupportedModel
from outrider.protocol.channel import from_rpc_error
from outrider.protocol.messages import GREEDY, SamplingParams
from outrider.sampling.sampler import Choice, choose_tokens, rank_tokens
from outrider.v1.generation_pb2 import GenerateResponse
from target_service.verifier import Verifier
from tests.support.models.tiny_models import make_model
from tests.support.system import System, options, running_system

BAD = 70
"""A token that no load check, no warm-up and no sound text below has."""

GOOD = [7, 8, 9, 10, 11, 12]
SAMPLED = SamplingParams(temperature=1.0, seed=1)
NUCLEUS = SamplingParams(temperature=1.0, top_p=0.9, seed=1)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose embedding has one row of NaN, its output layer none."""
    folder = make_model(tmp_path_factory.mktemp("nan"), "llama", tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][BAD] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def engine(poisoned: Path) -> Engine:
    return Engine(options(poisoned, slots=1))


async def results(verifier: Verifier, tokens: list[int], *draft: int) -> tuple[int, int]:
    session = await verifier.open_session_in_order()
    try:
        result = await session.verify(0, tokens, draft, GREEDY)
        return result.num_accepted_tokens, result.next_token_id
    finally:
        session.close()


@pytest.mark.parametrize(
    ("place", "params"), [(0, GREEDY), (40, SAMPLED), (79, GREEDY), (79, NUCLEUS)]
)
async def test_a_prompt_with_it_fails_and_leaves_nothing(
    engine: Engine, place: int, params: SamplingParams
) -> None:
    verifier = Verifier(engine)
    verifier.scheduler.batch_limits = BatchLimits(token_budget=16)
    expected = await results(verifier, GOOD)
    session = await verifier.open_session_in_order()
    prompt = [20 + i for i in range(80)]
    prompt[BAD - 20] = 19
    prompt[place] = BAD
    with pytest.raises(NotANumber, match="NaN"):
        await session.verify(0, prompt, [], params)
    session.close()
    assert await results(verifier, GOOD) == expected
    verifier.close()


async def test_a_draft_token_that_is_rejected_spoils_nothing(engine: Engine) -> None:
    verifier = Verifier(engine)
    _, first = await results(verifier, GOOD)
    _, second = await results(verifier, [*GOOD, first])
    session = await verifier.open_session_in_order()
    result = await session.verify(0, GOOD, [first, BAD, 5], GREEDY)
    assert (result.num_accepted_tokens, result.next_token_id) == (0, first)
    result = await session.verify(len(GOOD), [first, second], [], GREEDY)
    session.close()
    assert (0, result.next_token_id) == await results(verifier, [*GOOD, first, second])
    verifier.close()


async def test_what_is_not_sound_is_no_prefix_of_another_text(engine: Engine) -> None:
    verifier = Verifier(engine)
    prompt = [20 + i for i in range(30)] + [BAD]
    for _ in range(2):
        with pytest.raises(NotANumber):
            await results(verifier, [*prompt, 5])
    verifier.close()


def test_other_ranks_leave_nothing_either(engine: Engine) -> None:
    class Ranks:
        def follow(self, run_pass: Callable[[list[Chunk]], Any]) -> None:
            run_pass([Chunk(0, 0, [*GOOD, BAD], 1)])

        def announce(self, chunks: Any) -> None:
            pass

    any_ranks: Any = Ranks()
    engine.ranks = any_ranks
    engine.follow()
    assert engine.cache.are_finite([(0, 0, engine.max_context_length)]) == [True]


def test_chosen_tokens_tell_by_their_probabilities(engine: Engine) -> None:
    """Where an engine chooses by itself, a token in a row may be one that it has no numbers for."""
    for start, token_ids in ((0, GOOD), (6, [BAD])):  # as if BAD had been chosen after GOOD
        engine.forward([Chunk(0, start, token_ids, 1)])
    chosen = [[Choice(BAD, 0.5)], [Choice(0, float("nan"))]]
    chunk = Chunk(0, 5, GOOD[5:], 1)
    assert engine.clear_unsound([chunk], [chosen]) == [True]
    assert engine.cache.are_finite([(0, 5, 7)]) == [True]
    job = Chosen(0, 5, GOOD[5:], 1)
    job.finish_pass(chunk, chosen, is_sound=True, forward_ns=0)
    assert (job.token_ids, job.start, job.read) == ([BAD], 6, GOOD[5:])
    job.finish_pass(Chunk(0, 6, [BAD], 1), chosen[1:], is_sound=False, forward_ns=0)
    assert isinstance(job.done.exception(timeout=0), NotANumber)
    assert job.read == []


class Chosen(Job):
    """Goes on with what was chosen."""

    def take(self, choices: Sequence[Choice]) -> list[int]:
        return [choices[0].token_id]


def test_windows_do_not_hide_it(tmp_path: Path) -> None:
    """Of logits: behind two layers' windows of 4 tokens they may be numbers again."""
    folder = make_model(tmp_path, "mistral", sliding_window=4, tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][BAD] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    engine = Engine(options(folder, slots=1))
    chunk = Chunk(0, 0, [BAD, *GOOD * 4], 1)
    engine.forward([chunk])
    assert engine.clear_unsound([chunk], engine.forward([chunk])) == [False]
    again = Chunk(0, 0, GOOD * 4, 1)
    assert engine.forward([again])[0].isfinite().all()


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, NUCLEUS])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_choices_end_before_what_is_no_number(params: SamplingParams, bad: float) -> None:
    logits = torch.randn(3, 400, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(400)
    expected = choose_tokens(logits, ids, params, 5)
    logits[2, 17] = bad
    assert choose_tokens(logits, ids, params, 5) == expected[:2]
    with pytest.raises(NotANumber):
        choose_tokens(logits[2:], ids, params, 7)
    with pytest.raises(NotANumber):
        rank_tokens(logits[2:], ids, params, 7, 5)


def test_weights_that_give_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModel, match="NaN or infinite: damaged weights"):
        Engine(options(folder))


def test_a_draft_in_int8_takes_a_damaged_embedding_for_none(poisoned: Path) -> None:
    """One pass for all: NaN would end it for other sessions, too."""
    engine = Engine(options(poisoned, dtype="int8", slots=2))
    chunks = [Chunk(0, 0, [BAD, *GOOD], 1), Chunk(1, 0, GOOD, 1)]
    assert all(logits.isfinite().all() for logits in engine.forward(chunks))


async def generate(system: System, prompt: str, **fields: Any) -> GenerateResponse:
    return await system.generate(prompt, max_new_tokens=24, ignore_eos=True, **fields)


async def test_over_the_wire(poisoned: Path, tiny_models: Callable[..., Path]) -> None:
    """The target's request fails by its reason; a draft recovers."""
    sound = tiny_models("llama", tie_word_embeddings=False)
    async with running_system(sound, poisoned, slots=1) as system:
        [bad] = [t for t, i in system.servicer.pair.tokenizer.vocab.items() if i == BAD]
        before = await generate(system, "the cat", num_speculative_tokens=4)
        assert before.speculation.draft_acceptance_rate == 1.0
        hurt = await generate(system, f"the {bad} cat", num_speculative_tokens=4)
        assert len(hurt.token_ids) == 24
        after = await generate(system, "the cat", num_speculative_tokens=4)
        assert after.token_ids == before.token_ids
        assert after.speculation.draft_acceptance_rate == 1.0
    async with running_system(poisoned, slots=1) as system:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await generate(system, f"the {bad} cat")
        assert failed.value.code() == grpc.StatusCode.DATA_LOSS
        assert isinstance(from_rpc_error(failed.value), NotANumber)
        assert (await generate(system, "the cat")).token_ids == before.token_ids
