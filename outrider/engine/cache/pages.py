"""Storage whose memory is taken where it is written, and can be given back.

On Linux, pages of private anonymous memory exist from the first write on; until then they read as
zeros, and take nothing. A slot of the KV cache may so have room for the longest text, and take the
memory of the text that it holds. Transparent huge pages would take 512 pages at the first write.
"""

import math
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

IS_SUPPORTED = sys.platform == "linux"

# The room exceeds what will be used, so it is not counted where the system limits what is promised.
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)


class Pages:
    """A tensor of zeros that takes memory page by page, where it is written.

    `tensor` is contiguous. Only on Linux, and for CPUs.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._item = dtype.itemsize
        num_items = math.prod(shape)
        self._memory = mmap.mmap(-1, max(1, num_items * self._item), flags=_FLAGS)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        # The tensor keeps the mapping alive.
        self.tensor = torch.frombuffer(self._memory, dtype=dtype, count=num_items).view(*shape)

    def give_back(self, part: Tensor) -> None:
        """Gives back the pages that lie wholly within a contiguous part of `tensor`.

        They read as zeros again. The part's ends, less than a page each, keep what they hold.
        """
        begin = part.storage_offset() * self._item
        end = begin + part.nbytes
        page = mmap.PAGESIZE
        first, last = -(-begin // page) * page, end // page * page
        if first < last:
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
