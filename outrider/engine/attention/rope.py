"""Rotary embeddings (arXiv 2104.09864), whose frequencies may depend on the length of a text.

transformers determines them from the longest sequence of the pass, or of earlier passes of the
process. Here each sequence has its own frequencies, whatever shares its passes and however it is
divided into chunks:

- longrope (arXiv 2402.13753) has one set of factors for texts up to the original length, and
  another for longer ones. A text that grows beyond this length is read again, as with Phi-3 in
  transformers.
- dynamic NTK scaling raises the base with the length. A prompt is read with the base for its whole
  length, and each later token with the base for the text up to that token, as `generate` does on a
  model that has not seen a longer text.

Other kinds of scaling (linear, YaRN, Llama 3's) do not depend on the length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from outrider.errors import UnsupportedModel

# Kinds of scaling by a factor by which texts may exceed the configured length.
_STRETCHING = ("linear", "dynamic", "yarn")


@dataclass(frozen=True, slots=True)
class Rope:
    """How a model's rotary frequencies depend on the length of a text."""

    kind: str = ""
    """"longrope" or "dynamic"; empty: they do not."""
    original_length: int = 0
    """The length up to which the original frequencies apply."""

    def frequencies(self, length: int) -> int:
        """A text length that identifies the frequencies for a text of `length` tokens."""
        if not self.kind or length <= self.original_length:
            return self.original_length
        return length if self.kind == "dynamic" else self.original_length + 1

    @property
    def reads_again(self) -> bool:
        """Whether all tokens of a text must have the same frequencies."""
        return self.kind == "longrope"

    def with_same_frequencies(self, length: int, draft: Sequence[int]) -> Sequence[int]:
        """The first draft tokens, as long as they have the same frequencies as the `length` tokens
        before them."""
        if not self.reads_again or length > self.original_length:
            return draft
        return draft[: self.original_length - length]


NO_ROPE = Rope()


def rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The rotary parameters: one entry for all layers, or one for each type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [each for each in parameters.values() if isinstance(each, dict)] or [parameters]


def rope_of(config: Any) -> Rope:
    """The model's `Rope`. Raises UnsupportedModel if it differs between layers."""
    ropes = set()
    for parameters in rope_parameters(config):
        kind = parameters.get("rope_type", "")
        if kind == "longrope":
            ropes.add(Rope(kind, parameters["original_max_position_embeddings"]))
        elif kind == "dynamic":
            ropes.add(Rope(kind, config.max_position_embeddings))
    if len(ropes) > 1:
        raise UnsupportedModel("layers whose rotary embeddings change at different lengths")
    return ropes.pop() if ropes else NO_ROPE


def longest_text(config: Any) -> int | None:
    """The maximum text length of a model, according to its configuration; None: unknown."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    parameters = rope_parameters(config)
    if longest is None or len(parameters) > 1:
        return longest
    [only] = parameters
    if only.get("rope_type") not in _STRETCHING:
        return longest
    # Some configurations have the scaled length in `max_position_embeddings`, others not.
    original = only.get("original_max_position_embeddings") or longest
    return max(longest, int(original * only.get("factor", 1.0)))


class SequenceRotary(nn.Module):
    """A model's rotary embedding, applied to each sequence of a pass separately.

    Args:
        lengths: returns, for each token of the pass, the text length that determines its
            frequencies.
    """

    def __init__(self, rotary: nn.Module, rope: Rope, lengths: Any) -> None:
        super().__init__()
        self.rotary = rotary
        self._rope = rope
        self._lengths = lengths

    def forward(
        self, states: Tensor, position_ids: Tensor, layer_type: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [1, num_tokens, size] each, at `position_ids` [1, num_tokens]."""
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(self._lengths()):
            groups.setdefault(self._rope.frequencies(length), []).append(index)
        parts = [
            self._of(states, position_ids[:, indices], length, layer_type)
            for length, indices in groups.items()
        ]
        rows = torch.tensor(list(chain.from_iterable(groups.values())), device=states.device)
        cos, sin = (torch.cat(each, dim=1)[:, rows.argsort()] for each in zip(*parts, strict=True))
        return cos, sin

    def _of(
        self, states: Tensor, positions: Tensor, length: int, layer_type: str | None
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines with the frequencies of a text of `length` tokens."""
        rotary: Any = self.rotary
        prefix = "" if layer_type is None else f"{layer_type}_"
        original = getattr(rotary, f"{prefix}original_inv_freq", None)
        if self._rope.kind == "dynamic" and original is not None:
            # The module keeps the frequencies of the longest text so far.
            rotary.register_buffer(f"{prefix}inv_freq", original, persistent=False)
            setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)
        last = positions.new_full((1, 1), length - 1)
        arguments = {} if layer_type is None else {"layer_type": layer_type}
        cos, sin = rotary(states, torch.cat((positions, last), dim=1), **arguments)
        return cos[:, :-1], sin[:, :-1]


def rotate_by_sequence(model: nn.Module, lengths: Any) -> None:
    """Gives a model whose frequencies depend on the text length a `SequenceRotary`."""
    rope = rope_of(model.config.get_text_config())  # type: ignore[operator, union-attr]
    if not rope.kind:
        return
    for name, module in list(model.named_modules()):
        if hasattr(module, "rope_type") and hasattr(module, "original_max_seq_len"):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], SequenceRotary(module, rope, lengths))


class Rotation(NamedTuple):
    """The rotation of some tokens' heads."""

    cos: Tensor  # [num_tokens, 1, head_dim]; 1 where nothing is rotated
    sin: Tensor  # [num_tokens, 1, head_dim]; 0 where nothing is rotated
    """Negated in the first half, since rotation swaps the halves and negates one."""
    size: int
    """How many dimensions of a head are rotated, the first half with the second."""

    def at(self, positions: Tensor) -> "Rotation":
        """The rotation of tokens at these positions, if this is that of all positions."""
        return Rotation(self.cos[positions], self.sin[positions], self.size)

    def rotate(self, heads: Tensor) -> Tensor:
        """Rotates queries or keys, [num_tokens, num_heads, head_dim]."""
        halves = heads[..., : self.size].roll(self.size // 2, dims=-1)
        if self.size < heads.shape[-1]:
            halves = torch.cat((halves, heads[..., self.size :]), dim=-1)
        return torch.addcmul(heads * self.cos, halves, self.sin)


def rotation_of(cos: Tensor, sin: Tensor, head_dim: int) -> Rotation:
    """The rotation of all positions, from transformers' tables [max_length, size]."""
    max_length, size = cos.shape
    first, second = sin.chunk(2, dim=-1)
    rest = cos.new_ones(max_length, head_dim - size)
    cos = torch.cat((cos, rest), dim=-1)
    sin = torch.cat((-first, second, torch.zeros_like(rest)), dim=-1)
    return Rotation(cos[:, None], sin[:, None], size)
