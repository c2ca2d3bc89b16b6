"""Chunks, of which forward passes are made."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens that one sequence feeds into a pass, after its first `start` tokens."""

    slot: int
    start: int
    token_ids: Sequence[int]
    num_logits: int = 0
    """How many of the chunk's last tokens get logits."""
    copy_from: tuple[int, int] | None = None
    """A slot and an index: tokens from there up to `start` are copied from that slot first."""

    prompt_length: int = 0
    """The length of the prompt that this chunk is part of, or follows. Decides the rotary
    frequencies, where they depend on the length of the text."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


def text_lengths(chunks: Sequence[Chunk]) -> list[int]:
    """For each packed token, the length of the text whose rotary frequencies it has."""
    return [max(c.prompt_length, end) for c in chunks for end in range(c.start + 1, c.end + 1)]


def logit_rows(chunks: Sequence[Chunk]) -> list[int]:
    """Indices of the packed tokens that get logits."""
    rows: list[int] = []
    end = 0
    for chunk in chunks:
        end += len(chunk.token_ids)
        rows.extend(range(end - chunk.num_logits, end))
    return rows
