"""Chunks, of which forward passes are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True, eq=False)
class Capture:
    """Hidden states that the pass of a chunk leaves here.

    Layer i means `hidden_states[i]` of transformers: what enters decoder layer i. `rows`
    [num_tokens, len(layers) * hidden_size] are of the chunk's tokens in the latest pass, the layers
    side by side. Of what several chunks of a job leave, the last `window` tokens' are kept.
    """

    layers: tuple[int, ...]
    window: int | None = None
    rows: Tensor | None = None


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
    capture: Capture | None = None
    """Gets hidden states of the chunk's tokens, if an engine gives them."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


def text_lengths(chunks: Sequence[Chunk]) -> list[int]:
    """For each packed token, the length of the text whose rotary frequencies it has."""
    return [max(c.prompt_length, end) for c in chunks for end in range(c.start + 1, c.end + 1)]


def captured_layers(chunks: Sequence[Chunk]) -> list[int]:
    """The layers whose hidden states some chunks ask for, ascending."""
    return sorted({layer for c in chunks if c.capture is not None for layer in c.capture.layers})


def deliver(chunks: Sequence[Chunk], hidden_states: Mapping[int, Tensor]) -> None:
    """Gives chunks the rows that they ask for.

    Args:
        hidden_states: of the pass's tokens, by layer, each [num_tokens, hidden_size].
    """
    begin = 0
    for chunk in chunks:
        end = begin + len(chunk.token_ids)
        if (capture := chunk.capture) is not None:
            capture.rows = torch.cat(
                [hidden_states[layer][begin:end] for layer in capture.layers], dim=-1
            )
        begin = end


def logit_rows(chunks: Sequence[Chunk]) -> list[int]:
    """Indices of the packed tokens that get logits."""
    rows: list[int] = []
    end = 0
    for chunk in chunks:
        end += len(chunk.token_ids)
        rows.extend(range(end - chunk.num_logits, end))
    return rows
