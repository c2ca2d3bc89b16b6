"""The kernels that choose tokens: computed by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from outrider.engine import engine as engine_model
from outrider.engine.chunk import Chunk
from outrider.engine.cuda import recording_check, static_pass
from outrider.protocol.messages import GREEDY, SamplingParams
from outrider.sampling.recorded_sampling import (
    RowSettings,
    SamplingSpec,
    rank_rows,
    settings_of,
    work_of,
)
from tests.outrider.engine.cuda.test_static_passes import IDS, Again, engine_of

pytestmark = pytest.mark.triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")
kernels = importlib.import_module("outrider.engine.cuda.kernels")

SAMPLED = SamplingParams(temperature=0.9, seed=2**64 - 5)
FILTERED = SamplingParams(temperature=0.7, top_k=40, top_p=0.9, min_p=0.01, seed=5)
NUM_COLUMNS = 2500  # of several programs, the last of them not full
INDICES = (0, 7, 1000)


def ranked_by(
    kernels: Any, logits: Tensor, params: Sequence[SamplingParams], num_ids: int, width: int
) -> Tensor:
    specs = [SamplingSpec(each, num_ids, width) for each in params]
    numbers = torch.tensor([settings_of(each, logits.shape[1]) for each in specs])
    settings = RowSettings.of(numbers.t().contiguous().to(DEVICE))
    ids = 2 * torch.arange(logits.shape[1], device=DEVICE)
    indices = torch.tensor(INDICES, device=DEVICE)[: len(params)]
    work = work_of(specs)
    return rank_rows(logits.to(DEVICE), ids, indices, settings, work, width, kernels).cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 5])
@pytest.mark.parametrize("num_ids", [NUM_COLUMNS, 1500])
@pytest.mark.parametrize(
    "params",
    [(GREEDY,) * 3, (SAMPLED, GREEDY, SAMPLED), (FILTERED, SAMPLED, GREEDY)],
    ids=["greedy", "sampled", "filtered"],
)
def test_they_rank_as_torch_does(
    params: tuple[SamplingParams, ...], num_ids: int, width: int, dtype: torch.dtype
) -> None:
    logits = torch.randn(3, NUM_COLUMNS, generator=torch.Generator().manual_seed(width)).to(dtype)
    expected, found = (ranked_by(by, logits, params, num_ids, width) for by in (None, kernels))
    torch.testing.assert_close(found[..., 1], expected[..., 1], atol=1e-6, rtol=1e-5)
    assert torch.equal(found[:, 0, 0], expected[:, 0, 0])
    is_tied = (expected[:, 1:, 1] == expected[:, :-1, 1]).any(-1)  # then torch's order is any
    assert torch.equal(found[~is_tied, :, 0], expected[~is_tied, :, 0])


def test_of_equals_the_first_comes_first() -> None:
    logits = torch.zeros(1, NUM_COLUMNS, dtype=torch.bfloat16)
    logits[0, [2100, 40, 1024, 1023]] = 3.0
    ranked = ranked_by(kernels, logits, [GREEDY], NUM_COLUMNS, 5)
    assert ranked[0, :, 0].tolist() == [80, 2046, 2048, 4200, 0]


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NaN less itself
def test_what_is_left_out_is_unlikely_and_a_row_without_numbers_is_no_error_of_the_others() -> None:
    logits = torch.randn(3, NUM_COLUMNS, generator=torch.Generator().manual_seed(0))
    logits[1] = math.nan
    ranked = ranked_by(kernels, logits, [GREEDY] * 3, 3, 5)
    for row in (0, 2):
        order = logits[row, :3].argsort(descending=True)
        assert ranked[row, :3, 0].tolist() == (2 * order).tolist()
        assert ranked[row, 3:, 1].tolist() == [0.0, 0.0]
    assert set(ranked[1, :, 0].tolist()) <= {0.0, 2.0, 4.0}
    assert not ranked[1, 0, 1].isfinite()  # which tells


@pytest.mark.parametrize("works", [True, False])
def test_engines_choose_by_them_or_else_by_torch(
    works: bool, tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models("gpt_neox", num_hidden_layers=1, num_attention_heads=1)
    plain = engine_of(folder)
    calls = []

    def rank(*args: Any) -> Tensor:
        calls.append(args)
        if not works:
            raise OSError("no C compiler")
        ranked: Tensor = original(*args)
        return ranked

    original = kernels.rank
    monkeypatch.setattr(kernels, "rank", rank)
    monkeypatch.setattr(engine_model, "is_gpu", lambda device: True)
    monkeypatch.setattr(recording_check, "kernels_for", lambda device: kernels)
    monkeypatch.setattr(static_pass, "SHORTEST_LENGTH", 32)
    engine = engine_of(folder, DEVICE)
    engine.use_graphs(Again)
    engine.use_choices()
    assert engine.choices is not None
    tried = len(calls)
    assert tried > 0
    chunk = Chunk(0, 0, IDS[:4], 4)
    [chosen] = engine.choose([chunk], [SamplingSpec(GREEDY, len(engine.logit_token_ids))])
    assert (len(calls) > tried) == works
    [logits] = plain.forward([chunk])
    assert [ranks[0].token_id for ranks in chosen] == logits.argmax(-1).tolist()
