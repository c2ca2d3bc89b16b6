"""What gives a token the same logits in every pass, bit for bit, on a CPU.

Speculation computes a token in a pass of several; the target alone computes it in a pass of
its own. Each row of a product or of attention is a sum of its own, but in which order a
kernel adds up may depend on the shape of the whole. The two then round differently, and
where two tokens are all but equally likely, the text goes another way. So kernels are
given only shapes that they add up in one order (for servers on GPUs see "Defeating
Nondeterminism in LLM Inference", Thinking Machines Lab 2025):

- products have at least two rows, and in bfloat16 at most 32;
- attention has queries and keys in numbers that are cut into the same blocks. Keys that are
  masked add nothing.

That is how the kernels of torch's builds for x86 behave with AVX2, AVX-512 and AMX, which nothing
promises; `tests/unit/test_batch_invariance.py` holds them to it where it runs. With more than
two threads torch may divide an activation of many tokens in the middle of a vector, and
compute what is left over by other code, which in float32 shows in some last bits. Drafts
need none of this, and models in float16 or held by several processes have none.
"""

from __future__ import annotations

import sys

import torch

# A product of one row may have a kernel of its own, and in bfloat16, where the CPU has AMX,
# those of more than 32 rows are added up in another order.
_FEWEST_ROWS = 2
_MOST_ROWS = 32

# Torch's attention takes 32 queries at a time, and kernels divide these by 6 (AVX2) or 8; few
# left over have a kernel of their own, for large heads up to 15.
_QUERY_ROWS = 6
_MOST_QUERY_ROWS = 24
_LARGEST_HEAD = 128

# Torch's attention takes 512 keys at a time, at the end as many as there are. Products of
# up to 256 keys are added up in one go.
_KEYS_IN_ONE_GO = 256
_KEYS_AT_A_TIME = 512
_KEY_STEP = 64


class Shapes:
    """Any shapes: those that a pass happens to have."""

    def rows_at_once(self, dtype: torch.dtype) -> tuple[int, int]:
        """How many rows a product of [num_rows, in_features] has, at least and at most."""
        return 1, sys.maxsize

    def queries_at_once(self, num_queries: int, groups: int) -> int:
        """How many of so many attend together, with so many query heads to a key-value head."""
        return num_queries

    def attending_rows(self, num_rows: int, head_dim: int) -> int:
        """How many rows of queries attend, those that fill up included, if `num_rows` count."""
        return num_rows

    def attended_length(self, end: int) -> int:
        """How many keys a query attends to, masked ones included, if `end` of them count."""
        return end


class InvariantShapes(Shapes):
    """Those that kernels add up in one order."""

    def rows_at_once(self, dtype: torch.dtype) -> tuple[int, int]:
        return _FEWEST_ROWS, _MOST_ROWS if dtype == torch.bfloat16 else sys.maxsize

    def queries_at_once(self, num_queries: int, groups: int) -> int:
        return max(1, _MOST_QUERY_ROWS // groups)

    def attending_rows(self, num_rows: int, head_dim: int) -> int:
        step = _QUERY_ROWS if head_dim <= _LARGEST_HEAD else _MOST_QUERY_ROWS
        return -(-num_rows // step) * step

    def attended_length(self, end: int) -> int:
        rest = end % _KEYS_AT_A_TIME
        step = _KEY_STEP if rest <= _KEYS_IN_ONE_GO else _KEYS_AT_A_TIME
        return end - rest + -(-rest // step) * step


ANY_SHAPES = Shapes()
INVARIANT_SHAPES = InvariantShapes()


def shapes_for(device: torch.device, dtype: torch.dtype) -> Shapes:
    """The invariant ones where there are such: on CPUs, in float32 and bfloat16."""
    has_them = device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    return INVARIANT_SHAPES if has_them else ANY_SHAPES
