from __future__ import annotations

import dataclasses
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from outrider.engine.cache import memory
from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.cache.memory import TokenLimits
from outrider.engine.chunk import Chunk
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.errors import ConfigurationError
from outrider.serving.loading import load_served_model

CPU = torch.device("cpu")
GIGABYTE = 10**9


@pytest.mark.parametrize(
    ("free", "expected"), [(100 * GIGABYTE, 16), (5 * GIGABYTE, 5), (GIGABYTE, 1), (0, 1)]
)
def test_sessions_follow_free_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, expected: int
) -> None:
    monkeypatch.setattr(memory, "_available_bytes", lambda: free)
    monkeypatch.setattr(memory, "_container_bytes", lambda: 2**62)
    assert memory.sessions_that_fit(GIGABYTE // 10, CPU) == expected


def test_a_draft_leaves_room_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its target may still be loading there."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: 80 * GIGABYTE)
    gpu = torch.device("cuda")
    assert memory.sessions_that_fit(4 * GIGABYTE, gpu) == 16
    assert memory.sessions_that_fit(4 * GIGABYTE, gpu, is_draft=True) == 4
    assert memory.sessions_that_fit(1, gpu) == 64


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    before = memory.free_bytes(CPU)  # there is no such control group
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 2000\ninactive_file 500\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) >= before // 2
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.free_bytes(CPU) == 2500  # weights that were read from a file make room


def test_a_cache_that_cannot_be_had_is_refused(tiny_models: Callable[..., Path]) -> None:
    options = EngineOptions(str(tiny_models("llama")), "cpu", "float32", slots=10**9)
    with pytest.raises(ConfigurationError, match="--slots"):
        Engine(options)


def test_the_cache_does_not_grow_with_use(tiny_models: Callable[..., Path]) -> None:
    engine = Engine(
        EngineOptions(str(tiny_models("gpt2")), "cpu", "float32", slots=3, slots_per_session=2)
    )
    assert engine.cache.num_slots == 6
    before = engine.cache.num_bytes
    assert before == 6 * engine.max_context_length * engine.cache.bytes_per_token > 0
    engine.forward([Chunk(5, 0, [1] * 100, 1), Chunk(0, 0, [1], 1)])
    assert engine.cache.num_bytes == before


@pytest.mark.parametrize("batch_invariant", [True, False])
def test_what_attention_reads_beyond_the_context_is_counted(
    batch_invariant: bool, tiny_models: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    monkeypatch.setattr(
        "outrider.engine.cache.memory.check_fits",
        lambda num_bytes, device: checked.append(num_bytes),
    )
    engine = Engine(
        EngineOptions(
            str(tiny_models("gpt2")),
            "cpu",
            "float32",
            slots=2,
            max_context_length=100,
            batch_invariant=batch_invariant,
        )
    )
    stored = engine.attention_shapes.attended_length(100)
    assert stored > 100 if batch_invariant else stored == 100
    assert engine.cache.max_length == 100
    assert checked == [engine.cache.num_bytes] == [2 * stored * engine.cache.bytes_per_token]


def test_what_the_cache_takes_is_said_in_the_log(
    tiny_models: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    options = EngineOptions(str(tiny_models("gpt2")), "cpu", "float32", slots=3)
    with caplog.at_level("INFO", "outrider.serving.loading"):
        engine, _ = load_served_model(options, lambda what: None)
    [record] = [r for r in caplog.records if "KV cache" in r.message]
    for said in (3, engine.max_context_length, engine.cache.num_bytes / 1e6):
        assert isinstance(record.args, tuple)
        assert said in record.args
    assert engine.batch_limits.token_budget in record.args


@pytest.mark.parametrize("sizes", [[(2, 4), (2, 4), (2, 4)], [(2, 4), (1, 8)]])
def test_a_part_of_a_slot_is_copied_in_all_layers(sizes: list[tuple[int, int]]) -> None:
    small = SlotCache(1, 2)
    for layer, size in enumerate(sizes):
        small.storage(layer, torch.zeros(2, *size), torch.zeros(2, *size))
    cache = small.resized(3, 5)
    assert cache.num_bytes == sum(2 * 3 * 5 * heads * size * 4 for heads, size in sizes)
    for layer, size in enumerate(sizes):
        for stored in cache.storage(layer, *torch.zeros(2, 1, *size)):
            stored[1] = torch.randn(stored[1].shape)
    cache.copy(1, 2, 1, 4)
    for layer, size in enumerate(sizes):
        for stored in cache.storage(layer, *torch.zeros(2, 1, *size)):
            assert torch.equal(stored[2, :, 1:4], stored[1, :, 1:4])
            assert stored[2, :, 1:4].all()
            assert not stored[2, :, [0, 4]].any()
            assert not stored[0].any()


def allocated(options: EngineOptions, max_length: int = 96) -> tuple[SlotCache, TokenLimits]:
    probing = SlotCache(1, 2)
    for layer in range(2):
        probing.storage(layer, torch.zeros(1, 2, 64), torch.zeros(1, 2, 64))
    return memory.allocate(probing, options, max_length, CPU)


def test_an_eighth_of_the_tokens_may_be_kept() -> None:
    cache, limits = allocated(EngineOptions("", slots=16))
    assert cache.num_slots == 16
    assert limits == TokenLimits(16 * 96, 2 * 96)
    cache, limits = allocated(EngineOptions("", slots=16, slots_per_session=4))
    assert cache.num_slots == 64
    assert limits == TokenLimits(64 * 96, 2 * 96)
    assert allocated(EngineOptions("", slots=1))[1].num_kept == 96


def test_tokens_are_limited_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    monkeypatch.setattr(memory, "check_fits", lambda num_bytes, device: checked.append(num_bytes))
    cache, limits = allocated(EngineOptions("", slots=64, cached_tokens=960))
    assert limits.num_tokens == 960
    assert cache.num_tokens == 64 * 96
    # A part of a page for each slot, layer, head, and for keys and values.
    assert checked == [960 * cache.bytes_per_token + 64 * 2 * 2 * 2 * mmap.PAGESIZE]
    assert checked[0] < cache.num_bytes / 2


@pytest.mark.parametrize(("per_session", "cached_tokens"), [(1, 95), (4, 383)])
def test_the_longest_text_must_fit(per_session: int, cached_tokens: int) -> None:
    options = EngineOptions("", slots=4, slots_per_session=per_session, cached_tokens=cached_tokens)
    with pytest.raises(ConfigurationError, match=f"{96 * per_session} tokens"):
        allocated(options)


def test_ranks_keep_the_memory_of_their_slots() -> None:
    ranks = EngineOptions("", slots=4, tensor_parallel=2)
    assert allocated(ranks)[1] == memory.NO_LIMITS
    with pytest.raises(ConfigurationError, match="--cached-tokens"):
        allocated(dataclasses.replace(ranks, cached_tokens=96))


def test_tokens_cannot_be_limited_where_slots_have_their_memory_from_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outrider.engine.cache.kv_cache.IS_SUPPORTED", False)
    with pytest.raises(ConfigurationError, match="--cached-tokens"):
        allocated(EngineOptions("", slots=4, cached_tokens=96))
    assert allocated(EngineOptions("", slots=4))[1] == memory.NO_LIMITS
