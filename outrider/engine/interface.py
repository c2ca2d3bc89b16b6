"""The interface of an engine for its scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from outrider.engine.attention.rope import Rope
from outrider.engine.chunk import Chunk
from outrider.engine.soundness import Result
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice


class Passes(Protocol):
    """Runs forward passes, one at a time."""

    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor]: ...

    def choose(
        self, chunks: Sequence[Chunk], specs: Sequence[SamplingSpec], num_steps: int
    ) -> list[list[list[Choice]]] | list[Tensor]:
        """The choices after each chunk, or logits where the engine does not choose."""
        ...

    @property
    def rope(self) -> Rope: ...

    def clear_unsound(self, chunks: Sequence[Chunk], results: Sequence[Result]) -> list[bool]:
        """See `soundness.clear_unsound`."""
        ...
