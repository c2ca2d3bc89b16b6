"""Verifies the draft tokens of all waiting sessions in shared forward passes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from torch import Tensor

from outrider.acceptance import accept_matching
from outrider.engine.activity import ModelActivity, activity_of
from outrider.engine.job import Job
from outrider.engine.model import Engine
from outrider.engine.scheduler import Scheduler
from outrider.engine.sequence import TokenSequence
from outrider.errors import ConfigurationError, InvalidRequest
from outrider.messages import SamplingParams, Verdict
from outrider.sampling import choose_tokens

# Each orchestrator sends no more sessions than there are slots: these are for several.
MAX_WAITING = 64


class Verification(Job):
    """Reads committed and draft tokens in one go and picks the target's choice after each."""

    def __init__(
        self,
        slot: int,
        start: int,
        token_ids: Sequence[int],
        draft_token_ids: Sequence[int],
        params: SamplingParams,
        logit_token_ids: Tensor,
    ) -> None:
        num_logits = len(draft_token_ids) + 1
        super().__init__(slot, start, [*token_ids, *draft_token_ids], num_logits)
        self._first_index = start + len(token_ids)
        self._params = params
        self._logit_token_ids = logit_token_ids
        self.target_token_ids: list[int] = []

    def advance(self, logits: Tensor) -> list[int]:
        self.target_token_ids = choose_tokens(
            logits, self._logit_token_ids, self._params, self._first_index
        )
        return []


class VerifierSession:
    """One client's sequence, in a slot of its own. Close it to give the slot back."""

    def __init__(self, engine: Engine, scheduler: Scheduler, slot: int) -> None:
        self._scheduler = scheduler
        self._sequence = TokenSequence(engine.vocab_size, engine.max_context_length)
        self._logit_token_ids = engine.logit_token_ids
        self._slot = slot
        self._num_cached = 0  # how many tokens of the sequence the slot has read
        self._next_token_id: int | None = None  # of the last verdict

    def is_stale(self, context_length: int, token_ids: Sequence[int]) -> bool:
        """Whether a request that was sent ahead assumes another verdict than the last one.

        Raises InvalidRequest if there was none, or it does not assume one next token.
        """
        if self._next_token_id is None:
            raise InvalidRequest("assumes_verdict needs a verdict before it")
        if len(token_ids) != 1:
            raise InvalidRequest("assumes_verdict goes with exactly one of token_ids")
        is_true = context_length == len(self._sequence.token_ids)
        return not is_true or token_ids[0] != self._next_token_id

    async def verify(
        self,
        context_length: int,
        token_ids: Sequence[int],
        draft_token_ids: Sequence[int],
        params: SamplingParams,
    ) -> Verdict:
        """Keeps `context_length` tokens, appends `token_ids`, verifies the draft tokens.

        Raises:
            ContextMismatch, InvalidToken, ContextTooLong, InvalidRequest: nothing has changed.
        """
        self._sequence.check_tokens(draft_token_ids)
        self._sequence.update(context_length, token_ids, room=len(draft_token_ids))
        tokens = self._sequence.token_ids
        # The last token is read again if it must be: its logits are what is wanted.
        start = min(self._num_cached, context_length, len(tokens) - 1)
        job = Verification(
            self._slot, start, tokens[start:], draft_token_ids, params, self._logit_token_ids
        )
        self._num_cached = start
        timings = await asyncio.wrap_future(self._scheduler.submit(job))
        num_accepted, next_token = accept_matching(draft_token_ids, job.target_token_ids)
        length = len(tokens)
        tokens.extend(draft_token_ids[:num_accepted])
        self._num_cached = len(tokens)
        self._next_token_id = next_token
        is_bonus = num_accepted == len(draft_token_ids)
        return Verdict(length, num_accepted, next_token, is_bonus, len(tokens), timings)

    def close(self) -> None:
        self._scheduler.release(self._slot)


class Verifier:
    """Opens sessions on one engine.

    Args:
        max_waiting: how many sessions may wait for a slot.

    Raises:
        ConfigurationError: the model cannot say every token, so it is no target.
    """

    def __init__(self, engine: Engine, max_waiting: int = MAX_WAITING) -> None:
        if engine.has_draft_vocabulary:
            raise ConfigurationError("a model with a draft vocabulary can only be a draft")
        if engine.is_int8:
            # Its logits depend on what shares the pass, so there is no text that is its own.
            raise ConfigurationError("a model in int8 can only be a draft")
        self.engine = engine
        self.max_waiting = max_waiting
        self.scheduler = Scheduler(engine, engine.cache.num_slots, engine.pace)

    @property
    def num_free_slots(self) -> int:
        return self.scheduler.num_free_slots

    def activity(self) -> ModelActivity:
        return activity_of(self.engine, self.scheduler)

    def open_session(self) -> VerifierSession:
        """Raises NoFreeSlot."""
        return VerifierSession(self.engine, self.scheduler, self.scheduler.acquire())

    async def open_session_in_turn(self) -> VerifierSession:
        """Waits for a slot, in the order of the calls. Raises NoFreeSlot if too many wait."""
        slot = await self.scheduler.acquire_in_turn(self.max_waiting)
        return VerifierSession(self.engine, self.scheduler, slot)

    def close(self) -> None:
        self.scheduler.close()
        self.engine.close()
