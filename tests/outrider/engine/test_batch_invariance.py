"""On a CPU a token's logits are the same, bit for bit, whatever the pass that computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from outrider.engine.chunk import Chunk
from outrider.engine.cpu.calibration import AttentionKind, calibrate, find_layer, has_experts
from outrider.engine.cpu.int4_linear import pack_in_int4
from outrider.engine.cpu.packed_linear import (
    Float16Linear,
    fbgemm_is_available,
    pack_linears,
    row_linears,
)
from outrider.engine.engine import Engine
from outrider.engine.network import networks_for
from outrider.engine.options import EngineOptions
from outrider.engine.shapes import AttentionShapes, RowSizes
from outrider.engine.shapes import num_threads as with_threads
from tests.support.claims import needs_invariant
from tests.support.models.tiny_models import SUPPORTED_FAMILIES

pytestmark = pytest.mark.slow

# Beyond 256 keys, and products of one, two and many rows.
LENGTH = 280
WIDTHS = [(2,), (5, 1), (17, 3), (32, 33), (100,), (LENGTH,)]
# The same widths once each, at the beginning of a text and at its end.
FEW_WIDTHS = [(2, 5, 1, 17, 3, 32, 33, 100, 87), (87, 100, 33, 32, 3, 17, 1, 5, 2)]
ALL_WIDTHS_OF = ("llama", "gpt2")  # layers of our own, and transformers'
DTYPES = ("float32", "bfloat16", "int4")
OTHERS = [family for family in SUPPORTED_FAMILIES if family not in ALL_WIDTHS_OF]
CASES = [*product(ALL_WIDTHS_OF, DTYPES), *zip(OTHERS, cycle(DTYPES), strict=False)]


def ids_of(seed: int, vocab_size: int = 250, length: int = LENGTH) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(5, vocab_size, (length,), generator=generator).tolist()
    return ids


def in_passes(engine: Engine, ids: Sequence[int], widths: Sequence[int]) -> Tensor:
    """Logits [len(ids), vocab_size] by passes of so many tokens, in turn."""
    logits, start = [], 0
    for width in cycle(widths):
        tokens = ids[start : start + width]
        logits += engine.forward([Chunk(0, start, tokens, len(tokens))])
        start += len(tokens)
        if start == len(ids):
            break
    return torch.cat(logits)


def check_same_bits(
    engine: Engine,
    ids: list[int],
    passes: Sequence[Sequence[int]],
    reference: Sequence[int] = (1,),
) -> None:
    """Passes of these widths, in turn, give what those of `reference` give: of one token each."""
    needs_invariant(engine)
    expected = in_passes(engine, ids, reference)
    for widths in passes:
        assert torch.equal(in_passes(engine, ids, widths), expected), widths


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_no_bit_depends_on_the_pass(
    family: str, dtype: str, tiny_models: Callable[..., Path]
) -> None:
    engine = Engine(EngineOptions(str(tiny_models(family)), "cpu", dtype, slots=1))
    check_same_bits(engine, ids_of(1), WIDTHS if family in ALL_WIDTHS_OF else FEW_WIDTHS)


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("Mixtral", {"num_local_experts": 2}, True),
        ("Qwen3Moe", {"num_experts": 2, "moe_intermediate_size": 8, "head_dim": 8}, True),
        ("Cohere", {"use_qk_norm": True}, False),  # norms of several heads
        ("OPT", {"word_embed_proj_dim": 16, "ffn_dim": 8}, False),
    ],
)
def test_nothing_is_claimed_of_experts(
    family: str, settings: dict[str, Any], expected: bool
) -> None:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    settings |= {"vocab_size": 9, "intermediate_size": 8, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**sizes, **settings)
    *_, build = networks_for(config, is_whole=True, on_gpu=False)
    network = build(AutoModelForCausalLM.from_config(config), 64)
    pack_linears(network)
    assert has_experts(network) == expected
    kinds = [AttentionKind(1, 2, 8)]
    _, claim = calibrate(network, kinds, torch.float32, [1], 64)
    assert not (claim.holds and expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nor_with_two_threads(family: str, dtype: str, tiny_models: Callable[..., Path]) -> None:
    """As the default is on two cores."""
    try:
        folder = str(tiny_models(family))
        engine = Engine(EngineOptions(folder, "cpu", dtype, threads=2, slots=1))
        check_same_bits(engine, ids_of(1), FEW_WIDTHS)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_nor_in_long_texts(family: str, dtype: str, tiny_models: Callable[..., Path]) -> None:
    """Of more keys than attention takes at a time; the first are out of mistral's window.

    Where it takes another block of them, the reference goes token by token.
    """
    folder = tiny_models(family, max_position_embeddings=1400)
    engine = Engine(EngineOptions(str(folder), "cpu", dtype, slots=1))
    ids = ids_of(3, length=1100)
    reference = [500, *[1] * 40, 470, *[1] * 40, 50]
    check_same_bits(engine, ids, [(5, 33), (500, 20), (len(ids),)], reference)


@pytest.mark.parametrize("num_threads", [2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nor_with_several_threads(dtype: str, num_threads: int) -> None:
    """Of products whose sums are long enough to be divided among threads."""
    held = torch.float32 if dtype == "int4" else getattr(torch, dtype)
    weight, rows = (
        torch.randn(size, 4864, generator=torch.Generator().manual_seed(size)).to(held)
        for size in (896, 300)
    )
    parent = nn.Module()
    parent.linear = nn.Linear(4864, 896, bias=False, dtype=weight.dtype)
    parent.linear.load_state_dict({"weight": weight})
    if dtype == "int4":
        pack_in_int4(parent, vocab_size=0)
    else:
        pack_linears(parent)  # as this CPU can
    [linear] = row_linears(parent)
    found = find_layer(linear, [num_threads])
    assert found is not None
    linear.use(found.rows)
    with with_threads(num_threads):
        expected = torch.cat([linear(row) for row in rows.split(1)])
        for width in (2, 5, 16, 17, 64, 65, 300):
            assert torch.equal(linear(rows[:width]), expected[:width]), width


@pytest.mark.parametrize("length", [1, 63, 64, 65, 255, 256, 257, 511, 512, 513, 768, 769, 1025])
@pytest.mark.parametrize("num_fine_keys", [0, 256, 512])
def test_a_query_attends_to_all_that_counts_and_to_no_more_than_is_stored(
    length: int, num_fine_keys: int
) -> None:
    shapes = AttentionShapes(RowSizes((4, 8)), num_fine_keys)
    attended = shapes.attended_length(length)
    assert length <= attended < length + 512
    assert attended == shapes.attended_length(attended)
    assert attended <= shapes.attended_length(length + 1)


@pytest.mark.skipif(not fbgemm_is_available(), reason="no FBGEMM for this CPU")
def test_nor_with_weights_in_float16(tiny_models: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_models("llama")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).save_pretrained(tmp_path)
    engine = Engine(EngineOptions(str(tmp_path), "cpu", "float32", slots=1))
    assert any(isinstance(layer, Float16Linear) for layer in engine.network.modules())
    check_same_bits(engine, ids_of(1), WIDTHS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_nor_on_other_sessions(family: str, dtype: str, tiny_models: Callable[..., Path]) -> None:
    """A prompt, a verification and a step beside it, in slots that held something else before."""
    engine = Engine(EngineOptions(str(tiny_models(family)), "cpu", dtype, slots=4))
    needs_invariant(engine)
    ids, others = ids_of(1), ids_of(2)
    expected = in_passes(engine, ids, (1,))
    for slot in range(4):
        engine.forward([Chunk(slot, 0, others)])
    start = 0
    for width in (40, 1, 7, 3, 100, 1, 120, 5):
        chunks = [Chunk(3, 0, others[:70], 1), Chunk(0, 60, others[:5], 5)]
        chunks.insert(1, Chunk(1, start, ids[start : start + width], width))
        chunks.append(Chunk(2, 301, others[:1], 1))
        _, found, _, _ = engine.forward(chunks)
        assert torch.equal(found, expected[start : start + width]), (start, width)
        start += width


@pytest.mark.parametrize("dtype", DTYPES)
def test_nor_in_the_default_target(dtype: str, real_target: Path) -> None:
    """Whose products are large enough for kernels to divide them."""
    engine = Engine(EngineOptions(str(real_target), "cpu", dtype, slots=1, max_context_length=512))
    ids = ids_of(1, engine.vocab_size, 46)
    check_same_bits(engine, ids, [(5, 2), (13, 33), (46,)])
