"""A toy target and a tiny EAGLE-3 draft that reads its hidden states, driven pass by pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from draft_service.drafters.drafting import NUM_RUNNERS_UP
from draft_service.drafters.eagle3 import Eagle3Drafter
from outrider.engine.cache.memory import TokenLimits
from outrider.engine.chunk import Chunk, Features
from outrider.engine.eagle3.engine import Eagle3Engine
from outrider.engine.options import EngineOptions
from outrider.protocol.messages import SamplingParams
from outrider.sampling.recorded_sampling import SamplingSpec
from tests.support.models.eagle3 import make_eagle3
from tests.support.toy_pair import (
    LIMITS,
    MAX_CONTEXT_LENGTH,
    VOCAB_SIZE,
    SteppedScheduler,
    ToyEngine,
    ToyPair,
    states_after,
    toy_pair,
)

HIDDEN_SIZE = 64


@cache
def hidden_row(state: int) -> list[float]:
    """What a target that knows `state` gives of two layers; bfloat16 can hold it."""
    generator = torch.Generator().manual_seed(state)
    row: list[float] = torch.randn(2 * HIDDEN_SIZE, generator=generator).bfloat16().tolist()
    return row


class FeatureTarget(ToyEngine):
    num_layers = 2
    hidden_size = HIDDEN_SIZE

    def hidden_row(self, state: int) -> list[float]:
        return hidden_row(state)


class Eagle3Model:
    """The draft from scratch, with the target's hidden states of all tokens."""

    def __init__(self, engine: Eagle3Engine) -> None:
        self._engine = engine

    def continuation(
        self, tokens: Sequence[int], num_tokens: int, params: SamplingParams
    ) -> list[int]:
        found: list[int] = []

        def follow(choices: list[Any]) -> int:
            found.append(choices[0].token_id)
            return found[-1]

        if num_tokens:
            rows = torch.tensor([hidden_row(state) for state in states_after(tokens[:-1])])
            features = Features(rows, False, 1, follow)
            chunk = Chunk(0, 0, tokens[1:], 1, features=features)
            spec = SamplingSpec(params, VOCAB_SIZE, 1 + NUM_RUNNERS_UP)
            self._engine.choose([chunk], [spec], num_tokens)
        return found


@cache
def _engine(folder: Path) -> Eagle3Engine:
    make_eagle3(folder, vocab_size=VOCAB_SIZE, num_ids=VOCAB_SIZE, layer_ids=[0, 1])
    options = EngineOptions(
        str(folder), "cpu", slots=1, max_context_length=MAX_CONTEXT_LENGTH, is_draft=True
    )
    return Eagle3Engine(options)


def _with_slots(engine: Eagle3Engine, num_slots: int) -> Eagle3Engine:
    other = copy.copy(engine)
    other.cache = engine.cache.resized(num_slots, MAX_CONTEXT_LENGTH)
    other.token_limits = TokenLimits(num_kept=MAX_CONTEXT_LENGTH // 4)
    other.batch_limits = LIMITS
    return other


def eagle3_pair(folder: Path, num_predrafts: int) -> ToyPair:
    """Services with slots for one session. The draft is written into `folder` once."""
    pair = toy_pair(0.0, 1, num_predrafts, 0.0, target=FeatureTarget)
    engine = _engine(folder)
    with mock.patch("outrider.engine.worker.Scheduler", SteppedScheduler):
        drafter = Eagle3Drafter(_with_slots(engine, pair.num_draft_slots), num_predrafts)
    assert pair.draft_servicer.served is not None
    pair.draft_servicer.serve_model(pair.draft_servicer.served, drafter)
    scheduler: Any = drafter.scheduler
    return replace(
        pair,
        draft_model=Eagle3Model(_with_slots(engine, 1)),
        draft=scheduler,
        draft_info=replace(pair.info, reads_hidden_states=engine.reads_hidden_states),
        predrafts_are_exact=False,
    )
