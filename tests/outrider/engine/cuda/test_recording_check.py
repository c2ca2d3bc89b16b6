"""What is recorded is compared with what is not when a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.engine.cuda import static_choices, static_pass
from outrider.engine.cuda.static_choices import RowStates, StaticChoices
from outrider.sampling import recorded_sampling
from outrider.sampling.noise import gumbel_rows
from tests.outrider.engine.cuda.test_static_passes import Again, engine_of

pytestmark = pytest.mark.usefixtures("as_on_a_gpu")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_pass, "SHORTEST_LENGTH", 32)


@pytest.mark.parametrize("num_made", range(4))
def test_what_cannot_be_recorded_is_no_error(
    num_made: int, tiny_models: Callable[..., Path]
) -> None:
    """Of passes, of a verification, of a draft, and of its further steps."""
    made: list[Again] = []

    def record(run: Callable[[], Tensor]) -> Again:
        if len(made) == num_made:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        made.append(Again(run))
        return made[-1]

    engine = engine_of(tiny_models("llama"))
    engine.use_graphs(record)
    engine.use_choices()
    assert (engine.graphs is None) == (num_made == 0)
    assert engine.choices is None
    assert len(made) == num_made


@pytest.mark.parametrize(
    "broken",
    [
        "gumbel_rows",
        "_threshold",
        "RowStates.note",
        "StaticChoices._step",
        "rank_rows of greedy rows alone",
        "rank_rows with runners-up",
        "rank_rows without probabilities",
    ],
)
def test_choices_that_come_out_wrong_are_not_used(
    broken: str,
    tiny_models: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever a device gets wrong, at the latest in a step that reads what was chosen."""

    def note(states: RowStates, ranked: Tensor) -> None:
        states.chosen[0] = ranked  # always at the same place

    def step(choices: StaticChoices, program: Any, states: RowStates) -> Tensor:
        states.ends.sub_(2)  # what was read already
        ranked = right_step(choices, program, states)
        states.ends.add_(2)
        return ranked

    def rank_rows(*args: Any) -> Tensor:
        ranked: Tensor = right_ranks(*args)
        work, width = args[4:6]
        if (work.is_greedy and "greedy" in broken) or (width > 1 and "runners" in broken):
            ranked[:, -1, 0] = (ranked[:, -1, 0] + 1) % 100
        if "probabilities" in broken:
            ranked[..., 1] = math.nan
        return ranked

    right_step, right_ranks = StaticChoices._step, static_choices.rank_rows
    fakes: dict[str, Any] = {
        "gumbel_rows": lambda keys, indices, ids: gumbel_rows(keys, indices + 1, ids),
        "_threshold": lambda scores, settings: scores[:, :1] * math.nan,
        "RowStates.note": note,
        "StaticChoices._step": step,
        "rank_rows": rank_rows,
    }
    name = broken.split()[0]
    owner = static_choices if "." in name or name == "rank_rows" else recorded_sampling
    monkeypatch.setattr(f"{owner.__name__}.{name}", fakes[name])
    engine = engine_of(tiny_models("llama"))
    engine.use_graphs(Again)
    engine.use_choices()
    assert engine.graphs is not None
    assert engine.choices is None
    assert "no choices on the device" in caplog.text
    assert "no graph of" not in caplog.text
