"""Draft and target services with models that are arithmetic, driven pass by pass.

Everything but the models is the services' own: servicers, sessions, jobs, scheduling.
A toy model still has a cache of slots, which notices when a session reads what was
never written, or another sequence's; so a wrong slot gives a wrong text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from draft_service.drafters.model import ModelDrafter
from draft_service.servicer import DraftServicer
from outrider.engine.attention.rope import NO_ROPE
from outrider.engine.cache.memory import TokenLimits
from outrider.engine.chunk import Chunk
from outrider.engine.scheduling.batch_limits import BatchLimits
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.protocol.hidden_states import HiddenStateSpec
from outrider.protocol.messages import ModelInfo, SamplingParams
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice, choose_tokens, rank_tokens
from outrider.serving.model_service import ServedModel
from target_service.servicer import TargetServicer
from target_service.verifier import Verifier

VOCAB_SIZE = 12
EOS = 3
MAX_CONTEXT_LENGTH = 96

# Few enough tokens that a prompt is read in several passes; nobody is waited for.
LIMITS = BatchLimits(token_budget=7, gather_seconds=0.0)

_NUM_ROWS = 997


@cache
def _table(unlikeness: float) -> Tensor:
    """Logits [_NUM_ROWS, VOCAB_SIZE] of a model that differs so much from the target."""
    target = torch.randn(_NUM_ROWS, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    other = torch.randn(_NUM_ROWS, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    return 2 * ((1 - unlikeness) * target + unlikeness * other)


def _read(state: int, token_id: int) -> int:
    """What a model knows after one more token: it depends on all tokens so far."""
    return (state * 1_000_003 + token_id + 1) % 2_147_483_647


@dataclass(frozen=True)
class ToyModel:
    """A function from a sequence to logits. `unlikeness` 0 is the target, 1 is unrelated."""

    unlikeness: float = 0.0

    def logits(self, states: Sequence[int]) -> Tensor:
        return _table(self.unlikeness)[[state % _NUM_ROWS for state in states]]

    def continuation(
        self, tokens: Sequence[int], num_tokens: int, params: SamplingParams
    ) -> list[int]:
        """What the model says after `tokens`, one by one."""
        state = 0
        for token_id in tokens:
            state = _read(state, token_id)
        text: list[int] = []
        for index in range(len(tokens), len(tokens) + num_tokens):
            text += choose_tokens(self.logits([state]), torch.arange(VOCAB_SIZE), params, index)
            state = _read(state, text[-1])
        return text


HIDDEN_STATES = HiddenStateSpec(layers=(0,), hidden_size=4, window=MAX_CONTEXT_LENGTH)


def states_after(tokens: Sequence[int]) -> list[int]:
    """What a model knows after each token."""
    return list(accumulate(tokens, _read, initial=0))[1:]


class ToyEngine:
    """Runs a toy model as `Engine` runs a real one, with a cache of slots."""

    gives_hidden_states = True
    num_layers = 1
    hidden_size = 4

    vocab_size = VOCAB_SIZE
    max_context_length = MAX_CONTEXT_LENGTH
    logit_token_ids = torch.arange(VOCAB_SIZE)
    eos_token_ids = (EOS,)
    threads = None
    has_draft_vocabulary = False
    is_int8 = False
    batch_limits = LIMITS
    token_limits = TokenLimits(num_kept=MAX_CONTEXT_LENGTH // 4)

    def __init__(self, model: ToyModel, num_slots: int, chooses: bool = False) -> None:
        self.model = model
        self.chooses = chooses
        self.cache = SimpleNamespace(num_slots=num_slots, give_back=self._give_back)
        # What was read up to each place; None where nothing was ever written.
        self._slots: list[list[int | None]] = [
            [None] * MAX_CONTEXT_LENGTH for _ in range(num_slots)
        ]

    def _give_back(self, slot: int, begin: int) -> Iterator[None]:
        """In two parts; what was given back must not be read again."""
        content = self._slots[slot]
        for place in (begin, (begin + len(content)) // 2):
            content[place:] = [None] * (len(content) - place)
            yield

    def hidden_row(self, state: int) -> list[float]:
        """What it gives as hidden states: digits that bfloat16 can hold."""
        return list(state.to_bytes(4, "little"))

    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        for chunk in chunks:
            if chunk.copy_from is not None:
                source, begin = chunk.copy_from
                self._slots[chunk.slot][begin : chunk.start] = self._slots[source][
                    begin : chunk.start
                ]
        return [self._read_chunk(chunk) for chunk in chunks]

    def choose(
        self, chunks: Sequence[Chunk], specs: Sequence[SamplingSpec], num_steps: int
    ) -> list[list[list[Choice]]] | list[Tensor]:
        """As an engine on a GPU does, which reads its own choices."""
        if not self.chooses:
            return self.forward(chunks)
        chosen = [
            [
                self._ranked(spec, row, chunk.end - chunk.num_logits + 1 + index)
                for index, row in enumerate(rows)
            ]
            for chunk, spec, rows in zip(chunks, specs, self.forward(chunks), strict=True)
        ]
        for step in range(1, num_steps):
            for chunk, spec, ranks in zip(chunks, specs, chosen, strict=True):
                place = chunk.end + step - 1
                [row] = self._read_chunk(Chunk(chunk.slot, place, [ranks[-1][0].token_id], 1))
                ranks.append(self._ranked(spec, row, place + 1))
        return chosen

    rope = NO_ROPE

    def clear_unsound(self, chunks: Sequence[Chunk], results: Sequence[Any]) -> list[bool]:
        return [True] * len(chunks)

    def _ranked(self, spec: SamplingSpec, row: Tensor, index: int) -> list[Choice]:
        columns = slice(spec.num_ids)
        logits, ids = row[None, columns], self.logit_token_ids[columns]
        return rank_tokens(logits, ids, spec.params, index, spec.width)

    def _read_chunk(self, chunk: Chunk) -> Tensor:
        slot = self._slots[chunk.slot]
        state = slot[chunk.start - 1] if chunk.start else 0
        for place, token_id in enumerate(chunk.token_ids, chunk.start):
            assert state is not None, f"slot {chunk.slot} has nothing before {place}"
            slot[place] = state = _read(state, token_id)
        if chunk.capture is not None:
            read = [state for state in slot[chunk.start : chunk.end] if state is not None]
            chunk.capture.rows = torch.tensor([*map(self.hidden_row, read)], dtype=torch.float32)
        wanted = slot[chunk.end - chunk.num_logits : chunk.end]
        return self.model.logits([state for state in wanted if state is not None])


class SteppedScheduler(Scheduler):
    """Its passes begin and end when a test says so."""

    def __init__(self, engine: Any, num_slots: int, *settings: Any) -> None:
        self._chunks: list[Any] = []
        super().__init__(engine, num_slots, *settings)

    def _run(self) -> None:
        """Nothing on a thread of its own."""

    @property
    def is_busy(self) -> bool:
        return bool(self._chunks or self._jobs)

    def step(self) -> None:
        """Begins a pass, or ends the one that runs."""
        if self._chunks:
            self._work(self._chunks)
            self._chunks = []
        else:
            self._chunks = self._wait_for_chunks()


@dataclass
class ToyPair:
    """Both services' servicers and schedulers, and what they say of themselves."""

    draft_model: Any
    draft_servicer: DraftServicer
    target_servicer: TargetServicer
    draft: SteppedScheduler
    target: SteppedScheduler
    info: ModelInfo
    draft_info: ModelInfo
    num_draft_slots: int
    predrafts_are_exact: bool = True
    """Whether they are what the model says after tokens that are only assumed."""

    @property
    def num_free_slots(self) -> tuple[int, int]:
        return self.draft.num_free_slots, self.target.num_free_slots


def toy_pair(
    unlikeness: float,
    num_sessions: int,
    num_predrafts: int,
    min_confidence: float,
    chooses: bool = False,
    target: type[ToyEngine] = ToyEngine,
) -> ToyPair:
    """Services with slots for `num_sessions` sessions, whose engines choose tokens or do not."""
    info = ModelInfo("toy", MAX_CONTEXT_LENGTH, VOCAB_SIZE, num_slots=num_sessions)
    num_slots = num_sessions * max(1, num_predrafts)
    draft_model = ToyModel(unlikeness)
    draft_engine: Any = ToyEngine(draft_model, num_slots, chooses)
    target_engine: Any = target(ToyModel(), num_sessions, chooses)
    with mock.patch("outrider.engine.worker.Scheduler", SteppedScheduler):
        drafter = ModelDrafter(draft_engine, num_predrafts, min_confidence)
        verifier = Verifier(target_engine)
    draft_servicer, target_servicer = DraftServicer(), TargetServicer()
    draft_servicer.serve_model(ServedModel(info), drafter)
    target_servicer.serve_model(ServedModel(info), verifier)
    draft: Any = drafter.scheduler
    target_scheduler: Any = verifier.scheduler
    return ToyPair(
        draft_model,
        draft_servicer,
        target_servicer,
        draft,
        target_scheduler,
        info,
        info,
        num_slots,
    )
