"""The target's hidden states for feature drafts, as bytes that only the models interpret."""

from dataclasses import dataclass, field, replace
from typing import Self

# In one message, if it has those of several tokens.
MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class HiddenStateSpec:
    """The target's hidden states that a feature draft reads.

    Layer i means the input of decoder layer i; if `layers` is empty, the draft reads those of
    `of_target`. `hidden_size` is the size for one layer. The draft needs the hidden states of the
    last `window` tokens only.
    """

    layers: tuple[int, ...]
    hidden_size: int
    window: int

    def of_target(self, num_layers: int) -> Self:
        """The same with `layers` set, for a target with `num_layers` layers.

        The default of the EAGLE-3 authors: one layer near the beginning, one in the middle, one
        near the end.
        """
        layers = self.layers or (2, num_layers // 2, num_layers - 3)
        return replace(self, layers=layers)

    @property
    def row_bytes(self) -> int:
        """Bytes per token: bfloat16, for all layers."""
        return 2 * len(self.layers) * self.hidden_size


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Those of `num_tokens` consecutive tokens, from `first_index` of the sequence.

    `data` is bfloat16, little-endian: [num_tokens, number of layers * hidden_size].
    """

    first_index: int
    num_tokens: int
    data: bytes = field(repr=False)

    @property
    def end(self) -> int:
        """The index after the last token."""
        return self.first_index + self.num_tokens

    def part(self, first: int, end: int) -> Self:
        """Those of the tokens in [first, end), which must be among these."""
        row_bytes = self._row_bytes
        rows = slice((first - self.first_index) * row_bytes, (end - self.first_index) * row_bytes)
        return replace(self, first_index=first, num_tokens=end - first, data=self.data[rows])

    def pieces(self) -> list[Self]:
        """These, divided into parts that fit into a message; at least one, possibly empty."""
        most = max(1, MAX_BYTES // max(1, self._row_bytes))
        firsts = range(self.first_index, self.end, most)
        return [self.part(first, min(first + most, self.end)) for first in firsts] or [self]

    @property
    def _row_bytes(self) -> int:
        return len(self.data) // max(1, self.num_tokens)
