"""An engine whose passes take no time, and services that have it."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.support.random_models import PRINTABLE
from draft_service.drafters.fan_out import measure_step_time
from draft_service.drafters.model import ModelDrafter
from draft_service.servicer import DraftServicer
from outrider.engine.activity import PassCounts
from outrider.engine.attention.rope import NO_ROPE
from outrider.engine.cache.memory import NO_LIMITS
from outrider.engine.chunk import Chunk
from outrider.engine.scheduling.batch_limits import BatchLimits
from outrider.models.tokenizer_files import (
    chunks,
    read_tokenizer,
    to_bytes,
    vocabulary_fingerprint,
)
from outrider.protocol.messages import ModelInfo
from outrider.serving.model_service import ServedModel
from outrider.serving.server import run, serve
from outrider.settings.options import ServerOptions
from outrider.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server
from outrider.v1.target_pb2_grpc import add_TargetServiceServicer_to_server
from target_service.servicer import TargetServicer
from target_service.verifier import Verifier

NUM_SESSIONS = 16
NUM_PREDRAFTS = 4


class InstantEngine:
    """What a service needs of an `Engine`. Its logits depend on the last token only."""

    vocab_size = PRINTABLE
    max_context_length = 2048
    logit_token_ids = torch.arange(PRINTABLE)
    eos_token_ids = ()
    rope = NO_ROPE
    threads = None
    has_draft_vocabulary = is_int8 = False
    batch_limits = BatchLimits()
    token_limits = NO_LIMITS

    def __init__(self, num_slots: int) -> None:
        self.cache = SimpleNamespace(num_slots=num_slots, num_bytes=0, give_back=None)
        self.passes = PassCounts()
        self._logits = 50 * torch.eye(PRINTABLE).roll(1, 1)  # [token, its successor]

    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        return [
            self._logits[list(chunk.token_ids[len(chunk.token_ids) - chunk.num_logits :])]
            for chunk in chunks
        ]

    def choose(self, chunks: Sequence[Chunk], *_: Any) -> list[Tensor]:
        """It gives logits, as an engine on a CPU does."""
        return self.forward(chunks)

    def clear_unsound(self, chunks: Sequence[Chunk], results: Sequence[Any]) -> list[bool]:
        return [True] * len(chunks)

    def close(self) -> None:
        """Nothing is held."""


def serve_draft(server: ServerOptions, model: str) -> None:
    engine: Any = InstantEngine(NUM_SESSIONS * NUM_PREDRAFTS)
    step_time = measure_step_time(engine, NUM_PREDRAFTS)
    drafter = ModelDrafter(engine, NUM_PREDRAFTS, step_time=step_time)
    register = add_DraftServiceServicer_to_server
    _serve(server, "DraftService", register, DraftServicer(), drafter, model)


def serve_target(server: ServerOptions, model: str) -> None:
    engine: Any = InstantEngine(NUM_SESSIONS)
    verifier = Verifier(engine)
    register = add_TargetServiceServicer_to_server
    _serve(server, "TargetService", register, TargetServicer(), verifier, model)


def _serve(
    server: ServerOptions,
    name: str,
    register: Callable[..., None],
    servicer: Any,
    worker: Any,
    model: str,
) -> None:
    torch.set_num_threads(1)
    files = read_tokenizer(model)
    info = ModelInfo(
        model_id="instant",
        max_context_length=InstantEngine.max_context_length,
        vocab_size=PRINTABLE,
        vocabulary_fingerprint=vocabulary_fingerprint(files.tokenizer_json),
        num_slots=NUM_SESSIONS,
    )
    served = ServedModel(info, tuple(chunks(to_bytes(files))))

    async def load() -> None:
        servicer.serve_model(served, worker)

    run(serve(server, name, register, servicer, load), server, "instant")
