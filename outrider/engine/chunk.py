"""The unit of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens that one sequence feeds into a pass, after its first `start` tokens."""

    slot: int
    start: int
    token_ids: Sequence[int]
    num_logits: int = 0
    """How many rows of logits are wanted, those of the chunk's last tokens."""
    copy_from: tuple[int, int] | None = None
    """A slot and a place: tokens from there up to `start` are copied from that slot first."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)
