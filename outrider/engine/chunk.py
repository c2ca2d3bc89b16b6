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

    prompt_length: int = 0
    """Of the prompt that this chunk is part of, or follows. Decides the rotary frequencies, where
    they depend on the length of the text."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


def text_lengths(chunks: Sequence[Chunk]) -> list[int]:
    """Of each of the packed tokens, the length of the text that it was read with."""
    return [max(c.prompt_length, end) for c in chunks for end in range(c.start + 1, c.end + 1)]


def logit_rows(chunks: Sequence[Chunk]) -> list[int]:
    """Indices into the packed tokens of the rows whose logits are wanted."""
    rows: list[int] = []
    end = 0
    for chunk in chunks:
        end += len(chunk.token_ids)
        rows.extend(range(end - chunk.num_logits, end))
    return rows
