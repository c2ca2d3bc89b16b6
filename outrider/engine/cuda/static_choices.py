"""Passes together with the choice of tokens, recorded as one graph.

The choices for several steps of a draft, or for all tokens of a verification, are transferred to
the host at once. A draft step is a separate recording, which reads the token that the previous one
chose. Launched one after another, the steps run without gaps.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from outrider.engine.chunk import Chunk
from outrider.engine.cuda.static_pass import Shape, StaticPass, shape_of
from outrider.engine.cuda.static_passes import (
    Graph,
    StaticPasses,
    filled_up,
    sendable,
    tokens_and_positions,
)
from outrider.sampling.recorded_sampling import (
    NUM_SETTINGS,
    RowSettings,
    SamplingSpec,
    SamplingWork,
    rank_rows,
    settings_of,
    work_of,
)
from outrider.sampling.sampler import Choice

MAX_STEPS = 16
_FEWEST_ROWS = 2
# Limit on the scores of a pass: 4 bytes each, or 8 and some copies when sampling.
_MOST_GREEDY_SCORES = 1 << 25
_MOST_SCORES = 1 << 24

# Numbers of a row: its slot, the end of its chunk, and its sampling parameters.
_NUM_NUMBERS = 2 + NUM_SETTINGS


class Program(NamedTuple):
    """What a recording computes."""

    shape: Shape
    work: SamplingWork
    width: int
    at_end: bool
    """Whether tokens are chosen after each chunk's last token only, not after every token."""
    is_step: bool
    """Whether each row reads the token that was chosen last, instead of its chunk."""


class RowStates:
    """The state of each row of a pass, on the device."""

    def __init__(self, num_rows: int, width: int, device: torch.device) -> None:
        def integers(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int64, device=device)

        self.rows = integers(_NUM_NUMBERS, num_rows)
        self.slots, self.ends = self.rows[:2]
        """Each row's slot, and the end of its chunk."""
        self.token_ids = integers(num_rows)
        """The tokens that were chosen last."""
        self.count = integers(1)
        """How many tokens have been chosen."""
        self.chosen = torch.zeros(MAX_STEPS, num_rows, width, 2, dtype=torch.float64, device=device)

    def settings(self, count: int) -> RowSettings:
        """The settings of each row, each repeated `count` times."""
        numbers = self.rows[2:]
        return RowSettings.of(numbers if count == 1 else numbers.repeat_interleave(count, dim=1))

    def begin(self, rows: Tensor) -> None:
        """Sets slot, end and settings of each row: [_NUM_NUMBERS, num_rows]."""
        self.rows.copy_(rows)
        self.count.zero_()

    def note(self, ranked: Tensor) -> None:
        """Appends choices [num_rows, width, 2]. If full, as in trial runs, replaces the last."""
        place = self.count.clamp(max=MAX_STEPS - 1)
        self.chosen.index_copy_(0, place, ranked[None])
        self.token_ids.copy_(ranked[:, 0, 0])
        self.count.add_(1)


class StaticChoices:
    """Recordings of passes with choices, in addition to an engine's `StaticPasses`.

    Args:
        token_ids: [num_columns], the tokens of the logits' columns.
        kernels: the module of kernels that choose; None: torch's operators.
    """

    def __init__(
        self, passes: StaticPasses, token_ids: Tensor, kernels: ModuleType | None = None
    ) -> None:
        self._passes = passes
        self._kernels = kernels
        self._token_ids = token_ids
        self._device = passes.device
        self._states: dict[tuple[int, int], RowStates] = {}
        self._graphs: dict[Program, tuple[Tensor, Graph] | None] = {}

    @property
    def num_recordings(self) -> int:
        """The number of recordings so far, including failed ones."""
        return len(self._graphs)

    def choose(
        self, chunks: Sequence[Chunk], specs: Sequence[SamplingSpec], num_steps: int
    ) -> list[list[list[Choice]]] | None:
        """For each chunk, the choices after its tokens that have logits.

        Args:
            num_steps: how many tokens to choose in a row, each after reading the previous one. May
                exceed 1 if each chunk has logits for one token. Possibly fewer are chosen.

        Returns:
            None if there is no recording for it.
        """
        num_steps = min(num_steps, MAX_STEPS)
        shape = shape_of(chunks, self._passes.cache.max_length, num_steps)
        at_end = all(chunk.num_logits == 1 for chunk in chunks)
        if shape is None or (num_steps > 1 and not at_end):
            return None
        if at_end:  # a product of one row takes another kernel for its bias
            shape = shape._replace(num_rows=max(_FEWEST_ROWS, shape.num_rows))
        num_ids, work = len(self._token_ids), work_of(specs)
        num_chosen = shape.num_rows if at_end else shape.num_tokens
        if num_chosen * num_ids > (_MOST_GREEDY_SCORES if work.is_greedy else _MOST_SCORES):
            return None
        width = min(num_ids, max(spec.width for spec in specs))
        program = Program(shape, work, width, at_end, is_step=False)
        states = self._states_of(shape.num_rows, width)
        inputs = sendable(self._inputs(chunks, specs, shape), self._device)
        first = self._graph(program, inputs, lambda place: self._read(program, place, states))
        if first is None:
            return None
        place, graph = first
        place.copy_(inputs, non_blocking=True)
        ranked = graph.replay()
        if not at_end:
            return _of_tokens(ranked.view(shape.num_rows, shape.width, -1, 2).tolist(), chunks)
        num_chosen = 1 + self._repeat(program, states, num_steps - 1)
        chosen = states.chosen[:num_chosen].tolist()
        return [[_choices(ranks[row]) for ranks in chosen] for row in range(len(chunks))]

    def _states_of(self, num_rows: int, width: int) -> RowStates:
        key = (num_rows, width)
        if key not in self._states:
            self._states[key] = RowStates(*key, self._device)
        return self._states[key]

    def _inputs(
        self, chunks: Sequence[Chunk], specs: Sequence[SamplingSpec], shape: Shape
    ) -> list[int]:
        """Everything that differs between passes of a shape, as one tensor.

        Token ids, positions and each chunk's last token; slots, ends and settings.
        """
        rows = filled_up(chunks, shape.num_rows)
        lasts = [row * shape.width + len(chunk.token_ids) - 1 for row, chunk in enumerate(rows)]
        settings = [settings_of(spec, len(self._token_ids)) for spec in specs]
        numbers = [
            (chunk.slot, chunk.end, *own)
            for chunk, own in zip(rows, filled_up(settings, shape.num_rows), strict=True)
        ]
        by_kind = zip(*numbers, strict=True)
        return [*tokens_and_positions(rows, shape.width), *lasts, *chain.from_iterable(by_kind)]

    def _repeat(self, program: Program, states: RowStates, count: int) -> int:
        """Launches up to `count` further steps; returns how many."""
        if count == 0:
            return 0
        step = program._replace(shape=program.shape._replace(width=1), is_step=True)
        if step not in self._graphs:
            token_ids, num_chosen = states.token_ids.clone(), states.count.clone()
            self._graph(step, states.count, lambda _: self._step(step, states))
            states.token_ids.copy_(token_ids)  # recording has run it several times
            states.count.copy_(num_chosen)
        if (recorded := self._graphs[step]) is None:
            return 0
        for _ in range(count):
            recorded[1].replay()
        return count

    def _graph(
        self, program: Program, inputs: Tensor, run: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Graph] | None:
        """A recording and the tensor of its inputs; recorded now if it is new."""
        if program not in self._graphs:
            place = inputs.to(self._device)
            self._graphs[program] = self._passes.recorded(program.shape, place, lambda: run(place))
        return self._graphs[program]

    def _read(self, program: Program, inputs: Tensor, states: RowStates) -> Tensor:
        """Reads chunks and chooses; [num_rows or num_tokens, width, 2]."""
        num_rows, num_tokens = program.shape.num_rows, program.shape.num_tokens
        sizes = [num_tokens, num_tokens, num_rows, _NUM_NUMBERS * num_rows]
        token_ids, positions, lasts, numbers = inputs.split(sizes)
        states.begin(numbers.view(_NUM_NUMBERS, num_rows))
        if not program.at_end:
            all_rows = torch.arange(num_tokens, device=self._device)
            return self._pass(program, token_ids, positions, all_rows, states)
        ranked = self._pass(program, token_ids, positions, lasts, states)
        states.note(ranked)
        return ranked

    def _step(self, program: Program, states: RowStates) -> Tensor:
        """Reads the tokens that were chosen last, and chooses the next ones."""
        last = self._passes.cache.max_length - 1
        positions = (states.ends + states.count - 1).clamp(max=last)
        all_rows = torch.arange(program.shape.num_rows, device=self._device)
        ranked = self._pass(program, states.token_ids, positions, all_rows, states)
        states.note(ranked)
        return ranked

    def _pass(
        self,
        program: Program,
        token_ids: Tensor,
        positions: Tensor,
        rows: Tensor,
        states: RowStates,
    ) -> Tensor:
        passes = self._passes
        forward_pass = StaticPass(
            program.shape, positions, states.slots, passes.cache, passes.kernels
        )
        logits = passes.network(token_ids, forward_pass, rows)
        settings = states.settings(1 if program.at_end else program.shape.width)
        indices = positions[rows] + 1
        work, width = program.work, program.width
        return rank_rows(logits, self._token_ids, indices, settings, work, width, self._kernels)


def _of_tokens(ranked: list[Any], chunks: Sequence[Chunk]) -> list[list[list[Choice]]]:
    """The choices after each chunk's tokens that get logits."""
    chosen = []
    for row, chunk in zip(ranked, chunks, strict=False):  # there may be padding rows
        end = len(chunk.token_ids)
        chosen.append([_choices(ranks) for ranks in row[end - chunk.num_logits : end]])
    return chosen


def _choices(ranks: Sequence[Sequence[float]]) -> list[Choice]:
    """Choices, without excluded runners-up."""
    choices = [Choice(int(token_id), prob) for token_id, prob in ranks]
    return [choices[0], *(choice for choice in choices[1:] if choice.prob > 0)]
