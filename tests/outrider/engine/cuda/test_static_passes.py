"""Passes that are recorded and replayed: kernels on CUDA, here operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from outrider.engine.chunk import Chunk
from outrider.engine.cuda import static_pass
from outrider.engine.cuda.static_pass import Shape, shape_of
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from tests.support.models.tiny_models import SUPPORTED_FAMILIES

pytestmark = pytest.mark.usefixtures("as_on_a_gpu")

IDS = torch.randint(5, 250, (100,), generator=torch.Generator().manual_seed(1)).tolist()


class Recording:
    """The operators of one run. Numbers that Python had in hand are as they were, as in CUDA."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self._operators = make_fx(run)()

    def replay(self) -> Tensor:
        output: Tensor = self._operators()
        return output


class Again:
    """What is run again instead of replayed."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self.replay = run
        run()


def engine_of(folder: Path, device: str = "cpu", graphs: bool = False) -> Engine:
    return Engine(
        EngineOptions(
            str(folder), device, "float32", slots=5, max_context_length=100, graphs=graphs
        )
    )


# Layers of our own, and transformers' with windows and with learned positions;
# `test_second_device.py` records all families.
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_what_is_replayed_is_what_is_computed(
    family: str, tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_pass, "SHORTEST_LENGTH", 32)
    plain, recorded = (engine_of(tiny_models(family)) for _ in range(2))
    recorded.use_graphs(Recording)
    check_same(plain, recorded)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_what_cuda_replays_is_what_it_computes(
    family: str, tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_pass, "SHORTEST_LENGTH", 32)
    plain, recorded = (engine_of(tiny_models(family), "cuda:0", graphs) for graphs in (False, True))
    check_same(plain, recorded)


def check_same(plain: Engine, recorded: Engine) -> None:
    """Passes of all kinds; some come twice, with other tokens at other places."""
    assert plain.graphs is None
    assert recorded.graphs is not None
    passes = [
        [Chunk(0, 0, IDS[:30], 1), Chunk(3, 0, IDS[40:60], 1), Chunk(2, 0, IDS[7:9], 1)],  # eager
        [Chunk(0, 30, IDS[30:31], 1)],
        [Chunk(0, 31, IDS[31:34], 3)],
        [Chunk(0, 32, IDS[50:54], 4)],  # what was rejected is overwritten
        [Chunk(3, 20, IDS[60:61], 1), Chunk(0, 36, IDS[35:38], 2), Chunk(2, 2, IDS[9:14], 5)],
        [Chunk(2, 7, IDS[14:15], 1), Chunk(0, 39, IDS[38:41], 0), Chunk(3, 21, IDS[60:62], 2)],
        [Chunk(1, 15, IDS[15:16], 1, copy_from=(0, 0))],
    ]
    for chunks in passes:
        expected, found = plain.forward(chunks), recorded.forward(chunks)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other.cpu(), one.cpu(), atol=1e-4, rtol=1e-4)
    assert recorded.graphs.num_shapes == 5


def test_shapes_hold_what_comes_and_no_more() -> None:
    def chunks(*sizes: tuple[int, int]) -> list[Chunk]:
        return [Chunk(slot, start, [1] * n, 1) for slot, (start, n) in enumerate(sizes)]

    assert shape_of(chunks((0, 1)), 2048) == Shape(1, 1, 256)
    assert shape_of(chunks((255, 1)), 2048) == Shape(1, 1, 256)
    assert shape_of(chunks((253, 3)), 2048) == Shape(1, 4, 512)
    assert shape_of(chunks((700, 2), (3, 9), (0, 1)), 2048) == Shape(4, 16, 1024)
    assert shape_of(chunks((0, 1)), 100) == Shape(1, 1, 100)
    assert shape_of(chunks((96, 4)), 100) == Shape(1, 4, 100)
    assert shape_of(chunks((97, 3)), 100) is None  # there is no room to pad
    assert shape_of(chunks((0, 17)), 2048) is None
    assert shape_of(chunks(*[(0, 1)] * 65), 2048) is None


def test_what_cannot_be_recorded_or_comes_out_wrong_is_not_used(
    tiny_models: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(run: Callable[[], Tensor]) -> Recording:
        raise RuntimeError("operation not permitted when stream is capturing")

    class Wrong(Recording):
        def replay(self) -> Tensor:
            return super().replay() + 1.0

    engine = engine_of(tiny_models("llama"))
    for record, reason in ((refuse, "not permitted"), (Wrong, "other logits")):
        caplog.clear()
        engine.use_graphs(record)
        assert engine.graphs is None
        assert reason in caplog.text
        assert ("no graph of" in caplog.text) == (record is refuse)
    engine.forward([Chunk(0, 0, IDS[:3], 1)])


def test_a_shape_that_cannot_be_recorded_runs_as_ever(tiny_models: Callable[..., Path]) -> None:
    engine = engine_of(tiny_models("llama"))

    def only_two_rows(run: Callable[[], Tensor]) -> Recording:
        recording = Recording(run)
        if recording.replay().shape[0] != 2 * 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return recording

    engine.use_graphs(only_two_rows)
    assert engine.graphs is not None
    expected = engine_of(tiny_models("llama")).forward([Chunk(0, 0, IDS[:3], 1)])
    for _ in range(2):
        torch.testing.assert_close(engine.forward([Chunk(0, 0, IDS[:3], 1)]), expected)


def test_without_cuda_nothing_is_recorded(tiny_models: Callable[..., Path]) -> None:
    assert engine_of(tiny_models("llama"), graphs=True).graphs is None
