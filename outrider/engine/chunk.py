"""Chunks, of which forward passes are made."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from outrider.sampling.sampler import Choice


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


@dataclass(slots=True, eq=False)
class Features:
    """What a feature draft reads beside the tokens of a chunk, and what its pass leaves.

    `rows` are the target's hidden states, [num_tokens, num_layers * hidden_size], or the draft's
    own, [num_tokens, hidden_size]: row i is that of the token before the chunk's token i.
    `first_index` is the index in the sequence of the token with which the slot begins.

    `outputs` gets the draft's hidden states [1, hidden_size] behind the chunk, and behind each
    token that is drafted after it. `follow` takes the choices there and returns the token to read
    next, or None for no more; without it that is the choice.
    """

    rows: Tensor
    are_own: bool
    first_index: int = 0
    follow: Callable[[list[Choice]], int | None] | None = None
    outputs: list[Tensor] = field(default_factory=list)


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
    features: Features | None = None
    """For an engine of a feature draft; None: rows of zeros."""

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
    ends = accumulate(len(chunk.token_ids) for chunk in chunks)
    return [
        row
        for chunk, end in zip(chunks, ends, strict=True)
        for row in range(end - chunk.num_logits, end)
    ]
