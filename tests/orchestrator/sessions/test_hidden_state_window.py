from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from orchestrator.sessions.hidden_state_window import HiddenStateWindow, check_gives
from outrider.errors import HiddenStateMismatch, OutriderError
from outrider.protocol.hidden_states import HiddenStates, HiddenStateSpec
from outrider.protocol.messages import ModelInfo

SPEC = HiddenStateSpec(layers=(2, 7), hidden_size=1, window=5)
DRAFT = ModelInfo("the-draft", 99, 99, reads_hidden_states=SPEC)
TARGET = ModelInfo("the-target", 99, 99, num_layers=8, hidden_size=1, gives_hidden_states=True)


def states(first: int, end: int, sign: int = 0) -> HiddenStates:
    """Rows that tell their index, and who wrote them."""
    rows = [bytes([index, sign, index, sign]) for index in range(first, end)]
    return HiddenStates(first, end - first, b"".join(rows))


@pytest.fixture
def window() -> HiddenStateWindow:
    return HiddenStateWindow(SPEC)


def test_it_keeps_the_last_ones(window: HiddenStateWindow) -> None:
    window.add(states(0, 3))
    assert window.between(0, 3) == states(0, 3)
    window.add(states(3, 7))
    assert window.between(0, 7) == states(2, 7)
    assert window.between(4, 6) == states(4, 6)
    assert window.between(7, 7).num_tokens == 0
    window.add(states(7, 19))
    assert window.between(0, 19) == states(14, 19)


def test_what_is_read_again_replaces_what_was(window: HiddenStateWindow) -> None:
    window.add(states(0, 5))
    window.add(states(3, 6, sign=1))
    assert window.between(1, 6).data == states(1, 3).data + states(3, 6, sign=1).data
    window.add(states(4, 5, sign=2))
    with pytest.raises(OutriderError):
        window.between(4, 6)


@pytest.mark.parametrize("first", [0, 9])
def test_a_gap_begins_it_anew(first: int, window: HiddenStateWindow) -> None:
    window.add(states(3, 7))
    window.add(states(first, first + 2))
    assert window.between(0, first + 2) == states(first, first + 2)


@pytest.mark.parametrize("end", [2, 1, 9])
def test_what_it_does_not_have_is_an_error(end: int, window: HiddenStateWindow) -> None:
    window.add(states(2, 8))
    with pytest.raises(OutriderError, match="does not give"):
        window.between(0, end)


def test_a_first_token_needs_none(window: HiddenStateWindow) -> None:
    assert window.between(0, 0) == HiddenStates(0, 0, b"")


def test_rows_of_another_size_are_an_error(window: HiddenStateWindow) -> None:
    with pytest.raises(OutriderError, match="another size"):
        window.add(HiddenStates(0, 2, bytes(6)))


async def test_it_can_be_waited_for(window: HiddenStateWindow) -> None:
    waiting = asyncio.create_task(window.until(4))
    for end in (2, 4):
        await asyncio.sleep(0)
        assert not waiting.done()
        window.add(states(end - 2, end))
    await waiting
    await window.until(3)


def test_a_pair_that_fits() -> None:
    check_gives(TARGET, DRAFT)
    check_gives(ModelInfo("old", 99, 99), ModelInfo("of tokens only", 99, 99))


def test_a_draft_that_names_no_layers_fits_targets_that_have_its_own() -> None:
    unnamed = replace(DRAFT, reads_hidden_states=replace(SPEC, layers=()))
    check_gives(replace(TARGET, num_layers=3), unnamed)
    with pytest.raises(HiddenStateMismatch, match="the layers 2, 1, -1; the-target has 2 layers"):
        check_gives(replace(TARGET, num_layers=2), unnamed)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (replace(TARGET, gives_hidden_states=False, device="cuda:0"), "the-target on cuda:0"),
        (replace(TARGET, hidden_size=2), "of size 1; those of the-target have 2"),
        (replace(TARGET, num_layers=7), "the layers 2, 7; the-target has 7 layers"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused_by_name(target: ModelInfo, words: str) -> None:
    with pytest.raises(HiddenStateMismatch, match=f"the draft the-draft .*{words}"):
        check_gives(target, DRAFT)
