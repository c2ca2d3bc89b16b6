"""Proposes by a small model: k steps, batched with those of other sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from torch import Tensor

from outrider.engine.model import Engine
from outrider.engine.scheduler import Job, Scheduler
from outrider.engine.sequence import TokenSequence
from outrider.messages import Proposal, SamplingParams
from outrider.sampling import choose_tokens


class Drafting(Job):
    """Reads the context, then its own tokens one by one, until k are drafted or the text ends."""

    def __init__(
        self,
        slot: int,
        start: int,
        token_ids: Sequence[int],
        num_speculative_tokens: int,
        params: SamplingParams,
        logit_token_ids: Tensor,
        eos_token_ids: Sequence[int],
    ) -> None:
        super().__init__(slot, start, token_ids, num_logits=min(1, num_speculative_tokens))
        self.draft_token_ids: list[int] = []
        self._num_speculative_tokens = num_speculative_tokens
        self._next_index = start + len(token_ids)
        self._params = params
        self._logit_token_ids = logit_token_ids
        self._eos_token_ids = eos_token_ids

    def advance(self, logits: Tensor) -> list[int]:
        if self._num_speculative_tokens == 0:
            return []
        logits = logits[:, : len(self._logit_token_ids)]
        [token_id] = choose_tokens(logits, self._logit_token_ids, self._params, self._next_index)
        self.draft_token_ids.append(token_id)
        self._next_index += 1
        is_full = len(self.draft_token_ids) == self._num_speculative_tokens
        return [] if is_full or token_id in self._eos_token_ids else [token_id]


class ModelDrafterSession:
    """A sequence in a slot of the draft model's cache."""

    def __init__(self, engine: Engine, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._sequence = TokenSequence(engine.vocab_size, engine.max_context_length)
        self._logit_token_ids = engine.logit_token_ids
        self._eos_token_ids = engine.eos_token_ids
        self._slot = scheduler.acquire()
        self._num_cached = 0

    async def propose(
        self,
        context_length: int,
        token_ids: Sequence[int],
        num_speculative_tokens: int,
        params: SamplingParams,
        vocab_size: int | None,
    ) -> Proposal:
        room = max(0, num_speculative_tokens - 1)  # the last draft token is not read
        self._sequence.update(context_length, token_ids, room)
        tokens = self._sequence.token_ids
        length = len(tokens)
        start = min(self._num_cached, context_length, length - 1)
        self._num_cached = start
        job = Drafting(
            self._slot,
            start,
            tokens[start:],
            num_speculative_tokens,
            params,
            self._shared_token_ids(vocab_size),
            self._eos_token_ids,
        )
        timings = await asyncio.wrap_future(self._scheduler.submit(job))
        tokens.extend(job.draft_token_ids[:-1])
        self._num_cached = len(tokens)
        return Proposal(length, tuple(job.draft_token_ids), len(tokens), timings)

    def _shared_token_ids(self, vocab_size: int | None) -> Tensor:
        """The ids that the draft can propose and the target knows; they are ascending."""
        if vocab_size is None:
            return self._logit_token_ids
        return self._logit_token_ids[self._logit_token_ids < vocab_size]

    def close(self) -> None:
        self._scheduler.release(self._slot)


class ModelDrafter:
    """Opens sessions on one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._scheduler = Scheduler(engine, engine.cache.num_slots)

    @property
    def num_free_slots(self) -> int:
        return self._scheduler.num_free_slots

    def open_session(self) -> ModelDrafterSession:
        """Raises NoFreeSlot."""
        return ModelDrafterSession(self._engine, self._scheduler)

    def close(self) -> None:
        self._scheduler.close()
