"""Tokens chosen where the logits are: passes and choices recorded together.

Python learns what was chosen once for several steps of a draft, or for all tokens of a
verification, not value by value. A draft step is a recording of its own, which reads the token
that the one before it chose: asked for in a row, they run without a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outrider.engine.chunk import Chunk
from outrider.engine.recorded_sampling import (
    NUM_FLOATS,
    NUM_INTEGERS,
    Choosing,
    Kind,
    RowSettings,
    kind_of,
    rank_rows,
    settings_of,
)
from outrider.engine.static_pass import Shape, StaticPass, shape_of
from outrider.engine.static_passes import Graph, StaticPasses, filled_up, tokens_and_positions
from outrider.sampling import Choice

MAX_STEPS = 16
_FEWEST_ROWS = 2
# Scores of a pass, 8 bytes each and some copies of them; more tokens are chosen one by one.
_MOST_SCORES = 1 << 23


class What(NamedTuple):
    """What is recorded."""

    shape: Shape
    kind: Kind
    width: int
    at_end: bool
    """Tokens are chosen after each chunk's last token only, else after every token."""
    is_step: bool
    """Each row reads the token that was chosen last, else its chunk."""


class Steps:
    """Where some rows are, on the device."""

    def __init__(self, num_rows: int, width: int, device: torch.device) -> None:
        def integers(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        self.integers = integers(2 + NUM_INTEGERS, num_rows)
        self.floats = torch.zeros(NUM_FLOATS, num_rows, dtype=torch.float64, device=device)
        self.slots, self.ends = self.integers[:2]
        """Of each row; where its chunk ends."""
        self.settings = RowSettings(*self.integers[2:], *self.floats)
        self.token_ids = integers(num_rows)
        """What was chosen last."""
        self.count = integers(1)
        """How many tokens have been chosen."""
        self.chosen = torch.zeros(MAX_STEPS, num_rows, width, 2, dtype=torch.float64, device=device)

    def note(self, ranked: Tensor) -> None:
        """Adds [num_rows, width, 2]. There may be no room when a step is tried for a recording."""
        place = self.count.clamp(max=MAX_STEPS - 1)
        self.chosen.index_copy_(0, place, ranked[None])
        self.token_ids.copy_(ranked[:, 0, 0])
        self.count.add_(1)


class StaticChoices:
    """Recordings of passes and choices, beside those of an engine's passes.

    Args:
        token_ids: [num_columns], the tokens of the logits' columns.
    """

    def __init__(self, passes: StaticPasses, token_ids: Tensor) -> None:
        self._passes = passes
        self._token_ids = token_ids
        self._device = passes.device
        self._steps: dict[tuple[int, int], Steps] = {}
        self._graphs: dict[What, tuple[Tensor, Graph] | None] = {}

    @property
    def num_recordings(self) -> int:
        """That have been asked for."""
        return len(self._graphs)

    def choose(
        self, chunks: Sequence[Chunk], choosings: Sequence[Choosing], num_steps: int
    ) -> list[list[list[Choice]]] | None:
        """For each chunk, what is chosen after its tokens whose logits are wanted.

        Args:
            num_steps: read the token that is chosen, choose the next one, and so on; more than
                one where every chunk wants one token's logits. It may become fewer.

        Returns:
            None if there is no recording for it.
        """
        num_steps = min(num_steps, MAX_STEPS)
        shape = shape_of(chunks, self._passes.cache.max_length, num_steps)
        at_end = all(chunk.num_logits == 1 for chunk in chunks)
        if shape is None or (num_steps > 1 and not at_end):
            return None
        if at_end:  # a product of one row takes a kernel more for its bias
            shape = shape._replace(num_rows=max(_FEWEST_ROWS, shape.num_rows))
        num_chosen = shape.num_rows if at_end else shape.num_tokens
        if num_chosen * len(self._token_ids) > _MOST_SCORES:
            return None
        width = max(choosing.width for choosing in choosings)
        what = What(shape, kind_of(choosings), width, at_end, is_step=False)
        steps = self._begin(chunks, choosings, what)
        inputs = self._inputs(chunks, what)
        first = self._graph(what, inputs, lambda place: self._read(what, place, steps))
        if first is None:
            return None
        place, graph = first
        place.copy_(inputs)
        ranked = graph.replay()
        if not at_end:
            return _of_tokens(ranked.view(shape.num_rows, shape.width, -1, 2).tolist(), chunks)
        num_chosen = 1 + self._repeat(what, steps, num_steps - 1)
        chosen = steps.chosen[:num_chosen].tolist()
        return [[_choices(ranks[row]) for ranks in chosen] for row in range(len(chunks))]

    def _begin(self, chunks: Sequence[Chunk], choosings: Sequence[Choosing], what: What) -> Steps:
        """The rows' place and settings, on their way to the device."""
        num_rows, key = what.shape.num_rows, (what.shape.num_rows, what.width)
        if key not in self._steps:
            self._steps[key] = Steps(num_rows, what.width, self._device)
        steps = self._steps[key]
        integers, floats = zip(
            *(settings_of(choosing, len(self._token_ids)) for choosing in choosings), strict=True
        )
        rows = [[chunk.slot, chunk.end, *own] for chunk, own in zip(chunks, integers, strict=True)]
        steps.integers.copy_(torch.tensor(filled_up(rows, num_rows)).t())
        if not what.kind.is_greedy:
            columns = torch.tensor(filled_up(floats, num_rows), dtype=torch.float64).t()
            steps.floats.copy_(columns)
        return steps

    def _inputs(self, chunks: Sequence[Chunk], what: What) -> Tensor:
        """Token ids and positions, and which is each chunk's last token, end to end."""
        width = what.shape.width
        rows = filled_up(chunks, what.shape.num_rows)
        lasts = [row * width + len(chunk.token_ids) - 1 for row, chunk in enumerate(rows)]
        inputs = [*tokens_and_positions(rows, width), *lasts]
        return torch.tensor(inputs, device=self._device)

    def _repeat(self, what: What, steps: Steps, count: int) -> int:
        """Asks for so many further steps; returns how many there will be."""
        if count == 0:
            return 0
        step = what._replace(shape=what.shape._replace(width=1), is_step=True)
        kept = steps.token_ids.clone(), steps.count.clone()
        is_new = step not in self._graphs
        recorded = self._graph(step, steps.token_ids, lambda _: self._step(step, steps))
        if is_new:  # and was tried some times
            steps.token_ids.copy_(kept[0])
            steps.count.copy_(kept[1])
        if recorded is None:
            return 0
        for _ in range(count):
            recorded[1].replay()
        return count

    def _graph(
        self, what: What, place: Tensor, run: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Graph] | None:
        if what not in self._graphs:
            self._graphs[what] = self._passes.recorded(what.shape, place, lambda: run(place))
        return self._graphs[what]

    def _read(self, what: What, inputs: Tensor, steps: Steps) -> Tensor:
        """Reads chunks and chooses; [num_rows or num_tokens, width, 2]."""
        shape = what.shape
        sizes = [shape.num_tokens, shape.num_tokens, shape.num_rows]
        token_ids, positions, lasts = inputs.split(sizes)
        if what.at_end:
            steps.count.zero_()
            ranked = self._pass(what, token_ids, positions, lasts, steps)
            steps.note(ranked)
            return ranked
        all_rows = torch.arange(shape.num_tokens, device=self._device)
        return self._pass(what, token_ids, positions, all_rows, steps)

    def _step(self, what: What, steps: Steps) -> Tensor:
        """Reads the tokens that were chosen last, and chooses those after them."""
        last = self._passes.cache.max_length - 1
        positions = (steps.ends + steps.count - 1).clamp(max=last)
        all_rows = torch.arange(what.shape.num_rows, device=self._device)
        ranked = self._pass(what, steps.token_ids, positions, all_rows, steps)
        steps.note(ranked)
        return ranked

    def _pass(
        self, what: What, token_ids: Tensor, positions: Tensor, rows: Tensor, steps: Steps
    ) -> Tensor:
        passes = self._passes
        forward_pass = StaticPass(what.shape, positions, steps.slots, passes.cache, passes.kernels)
        logits = passes.network(token_ids, forward_pass, rows)
        settings = steps.settings if what.at_end else steps.settings.repeated(what.shape.width)
        indices = positions[rows] + 1
        return rank_rows(logits, self._token_ids, indices, settings, what.kind, what.width)


def _of_tokens(ranked: list[Any], chunks: Sequence[Chunk]) -> list[list[list[Choice]]]:
    """Of each chunk's row, those after tokens whose logits are wanted."""
    chosen = []
    for row, chunk in zip(ranked, chunks, strict=False):  # there may be rows of no chunk
        end = len(chunk.token_ids)
        chosen.append([_choices(ranks) for ranks in row[end - chunk.num_logits : end]])
    return chosen


def _choices(ranks: Sequence[Sequence[float]]) -> list[Choice]:
    """Without runners-up that are excluded."""
    choices = [Choice(int(token_id), prob) for token_id, prob in ranks]
    return [choices[0], *(choice for choice in choices[1:] if choice.prob > 0)]
