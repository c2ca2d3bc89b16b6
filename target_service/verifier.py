"""Verifies the draft tokens of all sessions in shared forward passes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from torch import Tensor

from outrider.engine.chunk import Capture
from outrider.engine.engine import Engine
from outrider.engine.scheduling.job import Job
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.engine.scheduling.sequence import TokenSequence
from outrider.engine.worker import Worker
from outrider.errors import ConfigurationError, InvalidRequest
from outrider.protocol.hidden_states import HiddenStates, HiddenStateSpec
from outrider.protocol.messages import MAX_NUM_SPECULATIVE_TOKENS, SamplingParams, VerifyResult
from outrider.sampling.acceptance import accept_matching
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice, choose_tokens
from target_service.hidden_states import check_spec, states_read
from target_service.run_ahead import RunAhead

# Sessions that may wait for a slot: one orchestrator opens no more than there are slots.
MAX_WAITING = 64


class Verification(Job):
    """Reads committed and draft tokens in one pass, and makes the target's choices for them."""

    on_result: Callable[[], None] | None = None
    """If set, called on the engine's thread when the result is known."""

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
        self.length = start + len(token_ids)  # of the committed tokens
        self.num_accepted = self.next_token_id = 0
        self._draft_token_ids = draft_token_ids
        self._params = params
        self._logit_token_ids = logit_token_ids
        self.spec = SamplingSpec(params, logit_token_ids.numel())

    def advance(self, logits: Tensor) -> list[int]:
        return self._judge(choose_tokens(logits, self._logit_token_ids, self._params, self.length))

    def advance_by(self, chosen: Sequence[Sequence[Choice]]) -> list[int]:
        return self._judge([choices[0].token_id for choices in chosen])

    def drop_guesses(self) -> bool:
        if not self._draft_token_ids:
            return False
        del self.token_ids[-len(self._draft_token_ids) :]
        self._draft_token_ids, self.num_logits = [], 1
        return True

    @property
    def text_length(self) -> int:
        return self.length

    def _judge(self, choices: Sequence[int]) -> list[int]:
        # There are fewer choices if logits are NaN.
        draft = self._draft_token_ids[: len(choices) - 1]
        self.num_accepted, self.next_token_id = accept_matching(draft, choices)
        if self.on_result is not None:
            self.on_result()
        return []


class VerifierSession:
    """One client's sequence of up to `max_length` tokens, in one slot, which `close` frees."""

    def __init__(self, engine: Engine, scheduler: Scheduler, slot: int, max_length: int) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._sequence = TokenSequence(engine.vocab_size, max_length)
        self._rope = engine.rope
        self._logit_token_ids = engine.logit_token_ids
        self._slot = slot
        self._num_cached = 0  # how many tokens of the sequence the slot has read
        self._next_token_id: int | None = None  # of the last result
        self._run_ahead: RunAhead | None = None
        self._hidden_states: HiddenStateSpec | None = None

    def give_hidden_states(self, spec: HiddenStateSpec) -> None:
        """Makes results carry these hidden states. Raises InvalidRequest if there are none."""
        check_spec(spec, self._engine)
        self._hidden_states = spec

    def is_stale(self, context_length: int, token_ids: Sequence[int]) -> bool:
        """Whether the result that a pipelined request assumes differs from the last one.

        Raises InvalidRequest if there is no last result, or not exactly one of `token_ids`.
        """
        if self._next_token_id is None:
            raise InvalidRequest("assumes_result needs a result before it")
        if len(token_ids) != 1:
            raise InvalidRequest("assumes_result goes with exactly one of token_ids")
        is_true = context_length == len(self._sequence.token_ids)
        return not is_true or token_ids[0] != self._next_token_id

    async def verify(
        self,
        context_length: int,
        token_ids: Sequence[int],
        draft_token_ids: Sequence[int],
        params: SamplingParams,
        num_run_ahead_tokens: int = 0,
    ) -> VerifyResult:
        """Keeps `context_length` tokens, appends `token_ids`, verifies the draft tokens.

        Then runs ahead by `num_run_ahead_tokens`, see `run_ahead`.

        Raises:
            ContextMismatch, InvalidToken, ContextTooLong, InvalidRequest: the session is unchanged.
        """
        if len(draft_token_ids) > MAX_NUM_SPECULATIVE_TOKENS:
            raise InvalidRequest(f"draft_token_ids must be at most {MAX_NUM_SPECULATIVE_TOKENS}")
        self._sequence.check_tokens(draft_token_ids)
        room = len(draft_token_ids) + num_run_ahead_tokens
        self._sequence.update(context_length, token_ids, room)
        tokens = self._sequence.token_ids
        # The last token is read again if necessary, since its logits are needed.
        start = min(self._num_cached, context_length, len(tokens) - 1)
        draft = self._rope.with_same_frequencies(len(tokens), draft_token_ids)
        job = Verification(self._slot, start, tokens[start:], draft, params, self._logit_token_ids)
        if num_run_ahead_tokens:
            loop = asyncio.get_running_loop()
            job.on_result = lambda: self._begin_run_ahead(job, num_run_ahead_tokens, params, loop)
        self._capture(job)
        self._num_cached = start
        timings = await asyncio.wrap_future(self._scheduler.submit(job))
        length = len(tokens)
        tokens.extend(draft_token_ids[: job.num_accepted])
        self._num_cached = len(tokens)
        self._next_token_id = job.next_token_id
        is_bonus = job.num_accepted == len(draft_token_ids)
        return VerifyResult(
            length,
            job.num_accepted,
            job.next_token_id,
            is_bonus,
            len(tokens),
            timings,
            hidden_states=self._states_read(job),
        )

    def _capture(self, job: Job) -> None:
        if (spec := self._hidden_states) is not None:
            job.capture = Capture(spec.layers, spec.window)

    def _states_read(self, job: Job) -> HiddenStates | None:
        """Of tokens that the session holds and `job` has read since the last call."""
        if self._hidden_states is None:
            return None
        return states_read(job, self._num_cached, self._hidden_states.window)

    def _begin_run_ahead(
        self,
        job: Verification,
        num_tokens: int,
        params: SamplingParams,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Begins to run ahead. Called on the engine's thread, for its next pass."""
        length = job.length + job.num_accepted
        ids = self._logit_token_ids
        run_ahead = RunAhead(self._slot, length, job.next_token_id, num_tokens, params, ids, loop)
        self._capture(run_ahead)
        self._run_ahead = run_ahead
        self._scheduler.follow_up(job, lambda: [run_ahead])

    def run_ahead(self) -> AsyncIterator[VerifyResult]:
        """The results of the run-ahead, until `stop` is called."""
        assert self._run_ahead is not None
        return self._run_ahead_results(self._run_ahead)

    async def _run_ahead_results(self, run_ahead: RunAhead) -> AsyncIterator[VerifyResult]:
        async for token_id, timings, states in run_ahead.choices():
            assert self._next_token_id is not None
            self._sequence.token_ids.append(self._next_token_id)
            self._next_token_id = token_id
            length = self._num_cached = len(self._sequence.token_ids)
            yield VerifyResult(length, 0, token_id, True, length, timings, True, states)

    def stop(self) -> None:
        """Ends the run-ahead. Tokens read after its last result will be read again."""
        if self._run_ahead is not None:
            self._scheduler.drop([self._run_ahead])
            self._run_ahead.stop()
            self._run_ahead = None

    def close(self) -> None:
        """Ends the run-ahead and frees the slot."""
        if self._run_ahead is not None:
            self._run_ahead.stop()
        self._scheduler.release(self._slot)


class Verifier(Worker):
    """Opens sessions on one engine.

    Args:
        max_waiting: how many sessions may wait for a slot.

    Raises:
        ConfigurationError: the model has a draft vocabulary or is in int8.
    """

    def __init__(self, engine: Engine, max_waiting: int = MAX_WAITING) -> None:
        if engine.has_draft_vocabulary:
            raise ConfigurationError("a model with a draft vocabulary can only be a draft")
        if engine.is_int8:
            # Its logits depend on what shares the pass, so texts would not be reproducible.
            raise ConfigurationError("a model in int8 can only be a draft")
        super().__init__(engine)
        self.max_waiting = max_waiting

    def open_session(self, max_length: int = 0) -> VerifierSession:
        """Opens a session for up to `max_length` tokens; 0: the most. Raises NoFreeSlot."""
        length = self.longest(max_length)
        slot = self.scheduler.acquire(length)
        return VerifierSession(self.engine, self.scheduler, slot, length)

    async def open_session_in_order(self, max_length: int = 0) -> VerifierSession:
        """The same, but waits for a slot and for memory, in order of the calls.

        Raises NoFreeSlot if too many sessions are waiting.
        """
        length = self.longest(max_length)
        slot = await self.scheduler.acquire_in_order(self.max_waiting, length)
        return VerifierSession(self.engine, self.scheduler, slot, length)
