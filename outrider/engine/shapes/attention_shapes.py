"""The kernel shapes of attention that give every query the same bits.

Speculation computes a token in a pass of several; the target alone computes it in a separate
pass. If the two round differently, texts diverge wherever two tokens are nearly equally likely.
So kernels are called only in shapes that give each row the same bits, which are found on this
CPU when a model is loaded (`calibration.py`): numbers of rows (`row_sizes.py`), and numbers of
keys. Masked keys add nothing.

Drafts do not need this, and it is not done on GPUs or for models that several processes hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from outrider.engine.shapes.row_sizes import ANY_ROWS, RowSizes

# Torch's attention takes 512 keys at a time, at the end as many as there are.
KEY_BLOCK = 512
KEY_STEP = 64


@dataclass(frozen=True, slots=True)
class AttentionShapes:
    """The numbers of rows and keys of a call, padding included.

    Without `rows` any shape will do. The keys of the last block are rounded up to a multiple of 64
    if there are at most `num_fine_keys` of them, else the block is filled up.
    """

    rows: RowSizes = ANY_ROWS
    num_fine_keys: int = 0

    @property
    def are_chosen(self) -> bool:
        return bool(self.rows.sizes)

    def queries_at_once(self, num_queries: int, groups: int) -> int:
        """How many of the queries attend together, with `groups` query heads to a key head."""
        sizes = self.rows.sizes
        return max(1, sizes[-1] // groups) if sizes else num_queries

    def attending_rows(self, num_rows: int) -> int:
        """The rows of a call for `num_rows`, padding included."""
        return next((size for size in self.rows.sizes if size >= num_rows), num_rows)

    def attended_length(self, end: int) -> int:
        """The keys of a call for the first `end` keys, padding included."""
        if not self.are_chosen:
            return end
        rest = end % KEY_BLOCK
        step = KEY_STEP if rest <= self.num_fine_keys else KEY_BLOCK
        return end - rest + -(-rest // step) * step


ANY_SHAPES = AttentionShapes()
