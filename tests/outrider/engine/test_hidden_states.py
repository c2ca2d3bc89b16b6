"""Hidden states that chunks ask for, against those of transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from outrider.engine.chunk import Capture, Chunk, deliver
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from tests.support.claims import needs_invariant
from tests.support.models.tiny_models import SUPPORTED_FAMILIES

IDS = torch.randint(5, 250, (60,), generator=torch.Generator().manual_seed(1)).tolist()
OTHERS = torch.randint(5, 250, (60,), generator=torch.Generator().manual_seed(2)).tolist()


def engine_of(folder: Path, dtype: str = "float32") -> Engine:
    return Engine(EngineOptions(str(folder), "cpu", dtype, slots=3, max_context_length=128))


def reference(folder: Path, ids: Sequence[int], layers: Sequence[int]) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        output = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return torch.cat([output.hidden_states[layer][0] for layer in layers], dim=-1)


def captured(engine: Engine, layers: tuple[int, ...], widths: Sequence[int]) -> Tensor:
    """Rows of IDS in slot 1, by passes of so many tokens, each beside other chunks."""
    rows, start = [], 0
    for width in widths:
        capture = Capture(layers)
        chunk = Chunk(1, start, IDS[start : start + width], 1, capture=capture)
        others = Capture((1,))
        beside = [Chunk(0, 0, OTHERS[:3], 2), Chunk(2, 0, OTHERS[: 2 * width], 0, capture=others)]
        engine.forward([beside[0], chunk, beside[1]])
        assert capture.rows is not None
        assert others.rows is not None
        assert len(others.rows) == 2 * width
        rows.append(capture.rows)
        start += width
    return torch.cat(rows)


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_rows_are_what_enters_the_layers(family: str, tiny_models: Callable[..., Path]) -> None:
    """In the order asked for, whatever shares the pass and asks for other layers."""
    folder = tiny_models(family)
    engine = engine_of(folder)
    assert engine.gives_hidden_states
    assert (engine.num_layers, engine.hidden_size) == (2, 64)
    rows = captured(engine, (1, 0), [7, 1, 4, 28])
    expected = reference(folder, IDS[:40], (1, 0))
    torch.testing.assert_close(rows, expected, atol=1e-3 * float(expected.std()), rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_no_bit_depends_on_the_pass(
    family: str, dtype: str, tiny_models: Callable[..., Path]
) -> None:
    engine = engine_of(tiny_models(family), dtype)
    needs_invariant(engine)
    capture, alone = Capture((0, 1)), []
    for start, token_id in enumerate(IDS[:40]):
        engine.forward([Chunk(0, start, [token_id], 1, capture=capture)])
        assert capture.rows is not None
        alone.append(capture.rows)
    assert torch.equal(captured(engine, (0, 1), [7, 1, 4, 28]), torch.cat(alone))


def test_asking_changes_no_logits(tiny_models: Callable[..., Path]) -> None:
    engine = engine_of(tiny_models("llama"))
    [asked] = engine.forward([Chunk(0, 0, IDS, 60, capture=Capture((0,)))])
    [not_asked] = engine.forward([Chunk(0, 0, IDS, 60)])
    assert torch.equal(asked, not_asked)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_gpu_gives_none_yet(tiny_models: Callable[..., Path]) -> None:
    assert not engine_of(tiny_models("llama")).gives_hidden_states


def test_a_model_in_int8_gives_its_own(tiny_models: Callable[..., Path]) -> None:
    folder = tiny_models("llama")
    engine = engine_of(folder, "int8")
    expected = reference(folder, IDS[:40], (0, 1))
    rows = captured(engine, (0, 1), [7, 1, 4, 28])
    assert torch.equal(rows[:, :64], expected[:, :64])
    assert 0 < (rows - expected).abs().mean() < 0.1 * expected.std()


def test_states_that_differ_from_those_of_transformers_are_not_given(
    tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model itself is served."""

    def swapped(chunks: Sequence[Chunk], hidden_states: dict[int, Tensor]) -> None:
        deliver(chunks, {0: hidden_states[1], 1: hidden_states[0]})

    monkeypatch.setattr("outrider.engine.engine.deliver", swapped)
    assert not engine_of(tiny_models("llama")).gives_hidden_states
