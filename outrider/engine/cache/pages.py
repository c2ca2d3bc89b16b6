"""Storage that uses memory only where it has been written, and can free it again.

On Linux, a page of private anonymous memory is allocated at its first write; until then it reads as
zeros. So a slot of the KV cache can have space for the longest text, and use memory only for the
text that it holds. Transparent huge pages would allocate 512 pages at the first write.
"""

import math
import mmap
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

IS_SUPPORTED = sys.platform == "linux"

# More is reserved than will be used, so it should not count where the system limits commitments.
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)


class Pages:
    """A contiguous CPU `tensor` of zeros, whose pages are allocated when they are written.

    Only on Linux.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self._item = dtype.itemsize
        num_items = math.prod(shape)
        self._memory = mmap.mmap(-1, max(1, num_items * self._item), flags=_FLAGS)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        # The tensor keeps the mapping alive.
        self.tensor = torch.frombuffer(self._memory, dtype=dtype, count=num_items).view(*shape)

    def give_back(self, part: Tensor) -> None:
        """Frees the pages that lie entirely within a contiguous part of `tensor`.

        They read as zeros again. The part's ends, less than a page each, are unchanged.
        """
        begin = part.storage_offset() * self._item
        end = begin + part.nbytes
        page = mmap.PAGESIZE
        first, last = -(-begin // page) * page, end // page * page
        if first < last:
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
