"""Run-ahead: the target decodes token after token without requests."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future

from torch import Tensor

from outrider.engine.scheduling.job import Job
from outrider.protocol.hidden_states import HiddenStates
from outrider.protocol.messages import SamplingParams, Timings
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice, choose_tokens
from target_service.hidden_states import states_read

_Told = tuple[int, Timings, HiddenStates | None]

_STOPPED: _Told = (-1, Timings(), None)  # ends `choices`


class RunAhead(Job):
    """Reads a token, chooses the next one, reads that one, and so on.

    Each choice, or the exception of a failed pass, is passed to `choices` on the event loop.

    Args:
        start: how many tokens the slot has read; `token_id` follows these.
        num_tokens: how many tokens to choose.
        loop: the event loop.
    """

    def __init__(
        self,
        slot: int,
        start: int,
        token_id: int,
        num_tokens: int,
        params: SamplingParams,
        logit_token_ids: Tensor,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(slot, start, [token_id], num_logits=1)
        self._num_tokens = self._num_left = num_tokens
        self._params = params
        self._logit_token_ids = logit_token_ids
        self.spec = SamplingSpec(params, logit_token_ids.numel())
        self._loop = loop
        self._choices: asyncio.Queue[_Told | BaseException] = asyncio.Queue()
        self._is_stopped = False
        self._before = Timings()
        self.done.add_done_callback(self._note_failure)

    def advance(self, logits: Tensor) -> list[int]:
        began = time.perf_counter_ns()
        # The slot has read all tokens before `start` by now.
        [token_id] = choose_tokens(logits, self._logit_token_ids, self._params, self.start)
        return self._tell_of(token_id, time.perf_counter_ns() - began)

    def take(self, choices: Sequence[Choice]) -> list[int]:
        return self._tell_of(choices[0].token_id, 0)

    def _tell_of(self, token_id: int, sample_ns: int) -> list[int]:
        now, before = self.timings, self._before
        timings = Timings(
            now.queue_ns - before.queue_ns,
            now.forward_ns - before.forward_ns,
            sample_ns,
            0,
            now.batch_tokens,
            now.batch_sessions,
            now.num_threads,
        )
        self._before = now
        self._tell((token_id, timings, states_read(self, self.start, window=1)))
        self._num_left -= 1
        return [token_id] if self._num_left else []

    async def choices(self) -> AsyncIterator[_Told]:
        """Yields tokens as they are chosen, until all are or `stop` is called.

        Each comes with its timings and, if the job captures them, the hidden states of the token
        before it.

        Raises the exception of a failed pass.
        """
        for _ in range(self._num_tokens):
            choice = await self._choices.get()
            if self._is_stopped:
                return
            if isinstance(choice, BaseException):
                raise choice
            yield choice

    def stop(self) -> None:
        """Ends `choices`. The caller must also drop the job in the scheduler."""
        self._is_stopped = True
        self._choices.put_nowait(_STOPPED)

    def _note_failure(self, done: Future[Timings]) -> None:
        if (error := done.exception()) is not None:
            self._tell(error)

    def _tell(self, choice: _Told | BaseException) -> None:
        self._loop.call_soon_threadsafe(self._choices.put_nowait, choice)
