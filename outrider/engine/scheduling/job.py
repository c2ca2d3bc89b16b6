"""A job of the scheduler: tokens for one slot to read, and what to do with the logits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future

from torch import Tensor

from outrider.engine.chunk import Chunk
from outrider.engine.soundness import Result, num_sound_choices
from outrider.errors import NotANumber
from outrider.protocol.messages import Timings
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice

# Passes that a job may be left out of before it goes first.
MAX_MISSED = 4


class Job:
    """Tokens for one slot to read, and what to do with the logits after them.

    Subclasses implement `advance`. If they say how the engine may choose tokens by itself
    (`spec`), they implement `take` as well, or `advance_by` if these follow several
    tokens. Everything else belongs to the scheduler.
    `done` gives the durations, all but the total, once `advance` wants no more.

    Args:
        start: how many tokens of the slot are valid; `token_ids` follow them.
        num_logits: how many rows of logits `advance` wants, for the last tokens.
        copy_from: a slot and a place: the tokens from there up to `start` are valid
            only there, and are copied first.
        is_background: waits until no other job does.
        session: whose job it is, where a session has several slots: the same number in all of
            its jobs, one of these slots. None: `slot`.
    """

    spec: SamplingSpec | None = None
    """How the engine may choose tokens by itself, if it can; None: `advance` does it."""

    def __init__(
        self,
        slot: int,
        start: int,
        token_ids: Sequence[int],
        num_logits: int,
        copy_from: tuple[int, int] | None = None,
        is_background: bool = False,
        session: int | None = None,
    ) -> None:
        self.slot = slot
        self.session = slot if session is None else session
        self.start = start
        self.token_ids = list(token_ids)
        self.num_logits = num_logits
        self.copy_from = copy_from
        self.is_background = is_background
        self.prompt_length = 0  # of the text that was read at once, once it is known
        self.is_dropped = False
        self.num_passes = 0
        self.read: list[int] = []  # what the last pass has read into the slot
        self.num_missed = 0  # passes since the last one that it was in
        self.done: Future[Timings] = Future()
        self._submitted_ns = time.perf_counter_ns()
        self._queue_ns = self._forward_ns = self._sample_ns = 0
        self._batch = (0, 0, 0)  # tokens, sessions and threads of the last pass

    def advance(self, logits: Tensor) -> list[int]:
        """Takes [num_logits, vocab_size]; returns the tokens to read next, or none when done."""
        raise NotImplementedError

    @property
    def num_at_once(self) -> int:
        """How many tokens the engine may choose in a row, reading each but the last one."""
        return 1

    def take(self, choices: Sequence[Choice]) -> list[int]:
        """`advance`, where the engine has chosen: a token, and its runners-up behind it."""
        raise NotImplementedError

    def advance_by(self, chosen: Sequence[Sequence[Choice]]) -> list[int]:
        """`advance`, where the engine has chosen after each token whose logits were wanted.

        Of several tokens in a row, those behind the last one that is wanted are dropped.
        """
        more: list[int] = []
        for choices in chosen:
            self.read += more
            self.start += len(more)
            more = self.take(choices)
            if not more:
                break
        return more

    def drop_guesses(self) -> bool:
        """Gives up tokens at the end that may be wrong; returns whether there were any.

        Masked or not, one that the model makes NaN of would spoil the others.
        """
        return False

    def num_next(self, budget: int, num_skipped: int = 0) -> int:
        """How many tokens the next pass may take, if so many are skipped; maybe none.

        Those whose logits are wanted stay together.
        """
        num_tokens = len(self.token_ids) - num_skipped
        if num_tokens <= budget:
            return num_tokens
        return max(0, min(budget, num_tokens - self.num_logits))

    def next_chunk(self, budget: int) -> Chunk:
        """So many tokens as `num_next` says."""
        token_ids = self.token_ids[: self.num_next(budget)]
        num_logits = self.num_logits if len(token_ids) == len(self.token_ids) else 0
        return Chunk(
            self.slot, self.start, token_ids, num_logits, self.copy_from, self.prompt_length
        )

    @property
    def is_late(self) -> bool:
        """Whether it was left out of as many passes as it may be."""
        return self.num_missed >= MAX_MISSED

    @property
    def text_length(self) -> int:
        """Of the text that it reads to its end, without what may be wrong."""
        return self.start + len(self.token_ids)

    @property
    def reads_all(self) -> bool:
        """Whether it begins with the sequence's first token."""
        return self.start == 0 and self.copy_from is None

    def read_again(self, token_ids: Sequence[int]) -> None:
        """Begins with the first token, given those before its own."""
        self.token_ids[:0] = token_ids
        self.start, self.copy_from = 0, None

    def num_skippable(self, num_known: int) -> int:
        """How many tokens at the beginning it need not read, of so many that a slot holds.

        Those whose logits are wanted, and the last one, are read in any case.
        """
        return max(0, min(num_known, len(self.token_ids) - max(1, self.num_logits)))

    def skip(self, source: int, num_tokens: int) -> None:
        """Leaves out tokens at the beginning that slot `source` has read."""
        del self.token_ids[:num_tokens]
        self.start = num_tokens
        self.copy_from = None if source == self.slot else (source, 0)

    def begin_pass(self, now_ns: int, num_tokens: int, num_sessions: int, num_threads: int) -> None:
        self._batch = (num_tokens, num_sessions, num_threads)
        self._queue_ns = self._queue_ns or now_ns - self._submitted_ns
        self.num_passes += 1
        self.num_missed = 0

    def finish_pass(self, chunk: Chunk, result: Result, is_sound: bool, forward_ns: int) -> None:
        """Books a pass; resolves `done` when the job wants no more.

        Args:
            is_sound: whether what the slot has of the chunk are numbers.
        """
        self._forward_ns += forward_ns
        self.start = chunk.end
        self.read = list(chunk.token_ids) if is_sound else []
        self.copy_from = None
        if not is_sound:
            self.start = chunk.start  # what failed does not count
            if not self.drop_guesses() and not self.is_dropped:
                self.done.set_exception(NotANumber())
            return
        del self.token_ids[: len(chunk.token_ids)]
        if self.token_ids or self.is_dropped:
            return
        began = time.perf_counter_ns()
        try:
            if isinstance(result, Tensor):
                self.token_ids = self.advance(result)
            elif num_choices := num_sound_choices(result):
                self.token_ids = self.advance_by(result[:num_choices])
            else:
                raise NotANumber()
        except Exception as error:  # one session's trouble is not the others'
            self.start = chunk.start
            self.done.set_exception(error)
            return
        self._sample_ns += time.perf_counter_ns() - began
        if not self.token_ids:
            self.done.set_result(self.timings)

    @property
    def timings(self) -> Timings:
        return Timings(self._queue_ns, self._forward_ns, self._sample_ns, 0, *self._batch)


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Whose turn it is in a pass with room for some tokens only.

    Shortest first, so that a long prompt delays nobody; but who was left out of some
    passes goes before the others, so that nobody is left out for ever. Background
    jobs are left out as long as there are others.
    """
    waiting = [job for job in jobs if not job.is_background] or jobs
    return sorted(waiting, key=lambda job: (-(job.num_missed // MAX_MISSED), len(job.token_ids)))
