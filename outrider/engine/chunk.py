"""Chunks, the parts of a forward pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from outrider.sampling.sampler import Choice


@dataclass(slots=True, eq=False)
class Capture:
    """A request for hidden states of a chunk's tokens, and the place for them.

    Layer i means the input of decoder layer i: `hidden_states[i]` in transformers. A pass sets
    `rows` [num_tokens, len(layers) * hidden_size] for the chunk's tokens, the layers side by side.
    If a job has several chunks, the rows of its last `window` tokens are kept; None: all.
    """

    layers: tuple[int, ...]
    window: int | None = None
    rows: Tensor | None = None


@dataclass(slots=True, eq=False)
class Features:
    """What a feature draft reads in addition to a chunk's tokens, and what the pass returns.

    `rows` are hidden states of the target, [num_tokens, num_layers * hidden_size], or, if
    `are_own`, of the draft, [num_tokens, hidden_size]. Row i belongs to the token before the
    chunk's token i. `first_index` is the index in the sequence of the slot's first token.

    The pass appends to `outputs` the draft's hidden states [1, hidden_size] after the chunk, and
    after each token that it drafts. `follow` is called with the choices there, and returns the
    token to read next, or None to stop; without it, the first choice is read.
    """

    rows: Tensor
    are_own: bool
    first_index: int = 0
    follow: Callable[[list[Choice]], int | None] | None = None
    outputs: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one sequence for one pass, after the first `start` tokens of its slot."""

    slot: int
    start: int
    token_ids: Sequence[int]
    num_logits: int = 0
    """For how many of the chunk's last tokens logits are computed."""
    copy_from: tuple[int, int] | None = None
    """A slot and an index: before the pass, tokens [index, start) are copied from that slot."""

    prompt_length: int = 0
    """The length of the prompt that this chunk belongs to or follows. It determines the rotary
    frequencies of models where these depend on the length of the text."""
    capture: Capture | None = None
    """Receives hidden states of the chunk's tokens, if the engine provides them."""
    features: Features | None = None
    """Input of a feature draft; None: rows of zeros."""

    @property
    def end(self) -> int:
        return self.start + len(self.token_ids)


def text_lengths(chunks: Sequence[Chunk]) -> list[int]:
    """For each packed token, the text length that determines its rotary frequencies."""
    return [max(c.prompt_length, end) for c in chunks for end in range(c.start + 1, c.end + 1)]


def captured_layers(chunks: Sequence[Chunk]) -> list[int]:
    """The layers whose hidden states any of the chunks captures, ascending."""
    return sorted({layer for c in chunks if c.capture is not None for layer in c.capture.layers})


def deliver(chunks: Sequence[Chunk], hidden_states: Mapping[int, Tensor]) -> None:
    """Sets the rows of the chunks' captures.

    Args:
        hidden_states: by layer, those of all tokens of the pass, [num_tokens, hidden_size].
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
    """Indices of the packed tokens whose logits are computed."""
    ends = accumulate(len(chunk.token_ids) for chunk in chunks)
    return [
        row
        for chunk, end in zip(chunks, ends, strict=True)
        for row in range(end - chunk.num_logits, end)
    ]
