"""Tests of storage that takes memory where it is written."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.cache.pages import IS_SUPPORTED, Pages

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="needs Linux")

MEGABYTE = 1 << 20
ITEMS = MEGABYTE // 4  # of float32 in a megabyte


def taken_megabytes(tensor: torch.Tensor) -> float:
    """Memory of the mapping in which the tensor lies."""
    address, is_here = tensor.data_ptr(), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            begin, end = (int(number, 16) for number in first.split("-"))
            is_here = begin <= address < end
        elif is_here and first == "Anonymous:":
            return int(line.split()[1]) / 1024
    raise AssertionError


def test_memory_is_taken_where_it_is_written_until_it_is_given_back() -> None:
    pages = Pages((64, ITEMS), torch.float32)
    before = taken_megabytes(pages.tensor)
    assert not pages.tensor.any()  # which reads all of it
    assert taken_megabytes(pages.tensor) == before
    pages.tensor[:32] = 1
    assert taken_megabytes(pages.tensor) == before + 32
    pages.give_back(pages.tensor[:24])
    assert taken_megabytes(pages.tensor) == before + 8
    assert not pages.tensor[:24].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_lies_beside_the_part_that_is_given_back_stays(dtype: torch.dtype) -> None:
    page = mmap.PAGESIZE // dtype.itemsize
    pages = Pages((4 * page,), dtype)
    pages.tensor[:] = 1
    pages.give_back(pages.tensor[page - 1 : 3 * page - 1])
    assert pages.tensor[:page].all()
    assert not pages.tensor[page : 2 * page].any()
    assert pages.tensor[2 * page :].all()
    pages.give_back(pages.tensor[1 : page + 1])  # no whole page
    assert pages.tensor[0] == 1


@pytest.mark.parametrize("sizes", [[(2, 64), (2, 64)], [(2, 64), (1, 128)]])
@pytest.mark.parametrize("begin", [0, 100])
def test_a_slot_gives_back_what_lies_behind_a_token(
    sizes: list[tuple[int, int]], begin: int
) -> None:
    small = SlotCache(1, 1)
    for layer, size in enumerate(sizes):
        small.storage(layer, torch.zeros(1, *size), torch.zeros(1, *size))
    cache = small.resized(3, 256)
    stored = [
        each
        for layer, size in enumerate(sizes)
        for each in cache.storage(layer, *torch.zeros(2, 1, *size))
    ]
    for each in stored:
        each.fill_(1)
    steps = list(cache.give_back(1, begin))
    assert len(steps) == len(stored)
    per_page = mmap.PAGESIZE // 4
    for each in stored:
        assert each[[0, 2]].all()
        assert each[1, :, :begin].all()
        first_given_back = begin + per_page // each.shape[-1] if begin else 0
        assert not each[1, :, first_given_back:].any()
