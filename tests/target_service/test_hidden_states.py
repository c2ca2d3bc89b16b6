"""Results carry the hidden states of the tokens that were read and kept."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from outrider.engine.scheduling.job import FEWEST_CAPTURED
from outrider.errors import InvalidRequest
from outrider.protocol import hidden_states
from outrider.protocol.hidden_states import HiddenStates, HiddenStateSpec
from outrider.protocol.messages import GREEDY
from outrider.v1 import common_pb2, target_pb2
from target_service.verifier import Verifier
from tests.support.system import System, load_once, options, running_system

SPEC = HiddenStateSpec(layers=(1, 0), hidden_size=64, window=500)
PROMPT = torch.randint(5, 250, (300,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture
def folder(tiny_models: Callable[..., Path]) -> Path:
    return tiny_models("llama")


@pytest.fixture
async def verifier(folder: Path) -> AsyncIterator[Verifier]:
    verifier = Verifier(load_once(options(folder))[0])
    yield verifier
    verifier.close()


def check(states: HiddenStates | None, tokens: list[int], first: int, folder: Path) -> None:
    """They are those of `tokens` from `first` on, as transformers has them."""
    assert states is not None
    assert (states.first_index, states.end) == (first, len(tokens))
    expected = reference(tokens, folder)[first:]
    torch.testing.assert_close(decoded(states), expected, atol=2e-2, rtol=2e-2)


def reference(tokens: list[int], folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        output = model(torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
    return torch.cat([output.hidden_states[layer][0] for layer in SPEC.layers], dim=-1)


def decoded(states: HiddenStates) -> Tensor:
    rows = torch.frombuffer(bytearray(states.data), dtype=torch.bfloat16)
    return rows.view(states.num_tokens, -1).float()


async def test_a_result_has_those_that_it_kept(verifier: Verifier, folder: Path) -> None:
    session = verifier.open_session()
    session.give_hidden_states(SPEC)
    result = await session.verify(0, PROMPT, [], GREEDY)  # in several passes
    check(result.hidden_states, PROMPT, 0, folder)
    tokens = [*PROMPT, result.next_token_id]
    wrong = (result.next_token_id + 1) % 250
    result = await session.verify(len(PROMPT), tokens[-1:], [wrong, wrong], GREEDY)
    tokens += [wrong, wrong][: result.num_accepted_tokens]
    check(result.hidden_states, tokens, len(PROMPT), folder)
    # Going back reads from there on.
    result = await session.verify(100, PROMPT[100:120], [], GREEDY)
    check(result.hidden_states, PROMPT[:120], 100, folder)


async def test_run_ahead_results_have_theirs(verifier: Verifier, folder: Path) -> None:
    session = verifier.open_session()
    session.give_hidden_states(SPEC)
    result = await session.verify(0, PROMPT[:9], [], GREEDY, num_run_ahead_tokens=3)
    tokens = [*PROMPT[:9], result.next_token_id]
    async with aclosing(session.run_ahead()) as more:  # type: ignore[type-var]
        async for result in more:
            check(result.hidden_states, tokens, len(tokens) - 1, folder)
            tokens.append(result.next_token_id)
    assert len(tokens) == 13


async def test_of_a_prompt_only_the_window(verifier: Verifier, folder: Path) -> None:
    session = verifier.open_session()
    session.give_hidden_states(HiddenStateSpec((1, 0), 64, window=70))
    result = await session.verify(0, PROMPT, [], GREEDY)
    check(result.hidden_states, PROMPT, 230, folder)


@pytest.mark.parametrize("length", [40, 150])
async def test_what_is_copied_is_read_again_at_its_end(
    length: int, verifier: Verifier, folder: Path
) -> None:
    first, second = verifier.open_session(), verifier.open_session()
    await first.verify(0, PROMPT[:length], [], GREEDY)
    second.give_hidden_states(SPEC)
    result = await second.verify(0, PROMPT[:length], [], GREEDY)
    num_copied = max(0, length - FEWEST_CAPTURED)
    check(result.hidden_states, PROMPT[:length], num_copied, folder)
    assert verifier.scheduler.num_reused_tokens == num_copied


async def test_without_asking_there_are_none(verifier: Verifier) -> None:
    session = verifier.open_session()
    result = await session.verify(0, PROMPT[:9], [], GREEDY)
    assert result.hidden_states is None


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (HiddenStateSpec((0,), 32, 9), "have size 64"),
        (HiddenStateSpec((0, 2), 64, 9), "layers 0 to 1"),
        (HiddenStateSpec((), 64, 9), "layers 0 to 1"),
        (HiddenStateSpec((0,), 64, 0), "a window"),
    ],
)
async def test_what_the_model_does_not_have_is_refused(
    spec: HiddenStateSpec, words: str, verifier: Verifier
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        verifier.open_session().give_hidden_states(spec)
    verifier.engine.gives_hidden_states = False
    with pytest.raises(InvalidRequest, match="gives no hidden states"):
        verifier.open_session().give_hidden_states(SPEC)


@pytest.fixture
async def system(folder: Path) -> AsyncIterator[System]:
    async with running_system(folder) as system:
        yield system


async def test_many_come_in_several_messages(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await system.target.GetModelInfo(common_pb2.GetModelInfoRequest())
    assert (info.gives_hidden_states, info.num_layers, info.hidden_size) == (True, 2, 64)
    spec = common_pb2.HiddenStateSpec(layers=SPEC.layers, hidden_size=64, window=9)
    request = target_pb2.VerifyRequest(token_ids=PROMPT[:7], hidden_states=spec)
    call = system.target.Verify()
    await call.write(request)
    whole = (await call.read()).result
    monkeypatch.setattr(hidden_states, "MAX_BYTES", 3 * SPEC.row_bytes)
    call = system.target.Verify()
    await call.write(request)
    *pieces, last = [await call.read() for _ in range(3)]
    parts = [*(piece.hidden_states for piece in pieces), last.result.hidden_states]
    assert [(part.first_index, part.num_tokens) for part in parts] == [(0, 3), (3, 3), (6, 1)]
    assert b"".join(part.data for part in parts) == whole.hidden_states.data
    assert last.result.next_token_id == whole.next_token_id
