"""A job of the scheduler: tokens to read into one slot, and what to do with their logits."""

import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.engine.chunk import Capture, Chunk
from outrider.engine.soundness import Result, num_sound_choices
from outrider.errors import NotANumber
from outrider.protocol.messages import Timings
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice

# A prefix that is copied from another slot yields no hidden states. If they are captured, at least
# this many tokens are read nevertheless.
FEWEST_CAPTURED = 64

# How many passes a job may be left out of before it takes precedence.
MAX_MISSED = 4


class Job:
    """Tokens to read into one slot, and what to do with the logits after them.

    Subclasses implement `advance`. If they have a `spec`, with which the engine may choose tokens,
    they also implement `take`, or `advance_by` for choices after several tokens. Everything else
    belongs to the scheduler. Once `advance` returns no more tokens, `done` has the durations,
    except for the total.

    Args:
        start: how many tokens of the slot are valid; `token_ids` follow these.
        num_logits: for how many of the last tokens `advance` needs logits.
        copy_from: a slot and an index: the tokens in [index, start) are valid in that slot only,
            and are copied first.
        is_background: whether to run only when no other jobs are pending.
        session: for a session with several slots, one of these, the same in all of its jobs.
            None: `slot`.

    With a `capture`, hidden states are collected for `take_hidden_states`, if the engine provides
    them.
    """

    spec: SamplingSpec | None = None
    """How the engine may choose tokens; None: `advance` chooses them from logits."""
    capture: Capture | None = None
    """The hidden states to collect for all tokens that it reads."""

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
        self.prompt_length = 0  # of the text's prompt, once it is known
        self.is_dropped = False
        self.num_passes = 0
        self.read: list[int] = []  # tokens that the last pass read into the slot
        self.num_missed = 0  # passes since the last one with a chunk of it
        self._captured: list[
            tuple[int, NDArray[np.int16]]
        ] = []  # by chunk: its start, and its rows
        self.done: Future[Timings] = Future()
        self._submitted_ns = time.perf_counter_ns()
        self._queue_ns = self._forward_ns = self._sample_ns = 0
        self._batch = (0, 0, 0)  # tokens, sessions and threads of the last pass

    def advance(self, logits: Tensor) -> list[int]:
        """Takes logits [num_logits, vocab_size]. Returns the tokens to read next; empty: done."""
        raise NotImplementedError

    @property
    def num_at_once(self) -> int:
        """How many tokens the engine may choose in a row, each after reading the previous one."""
        return 1

    def take(self, choices: Sequence[Choice]) -> list[int]:
        """`advance` with the engine's choices: a token, followed by its runners-up."""
        raise NotImplementedError

    def advance_by(self, chosen: Sequence[Sequence[Choice]]) -> list[int]:
        """`advance` with the engine's choices after each token that has logits.

        Of tokens chosen in a row, those after the last one that is needed are dropped.
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
        """Drops draft tokens at the end; returns whether there were any.

        Called after NaN: a draft token whose states are NaN corrupts the others, even if masked.
        """
        return False

    def num_next(self, budget: int, num_skipped: int = 0) -> int:
        """How many tokens the next chunk has if `num_skipped` are skipped; possibly none.

        Tokens that have logits are in one chunk.
        """
        num_tokens = len(self.token_ids) - num_skipped
        if num_tokens <= budget:
            return num_tokens
        return max(0, min(budget, num_tokens - self.num_logits))

    def next_chunk(self, budget: int) -> Chunk:
        """The next chunk, of `num_next` tokens."""
        token_ids = self.token_ids[: self.num_next(budget)]
        num_logits = self.num_logits if len(token_ids) == len(self.token_ids) else 0
        return Chunk(
            self.slot,
            self.start,
            token_ids,
            num_logits,
            self.copy_from,
            self.prompt_length,
            self.capture,
        )

    @property
    def is_late(self) -> bool:
        """Whether it was left out of `MAX_MISSED` passes."""
        return self.num_missed >= MAX_MISSED

    @property
    def begins_text(self) -> bool:
        """Whether its next pass is the first one that reads a text."""
        return self.prompt_length > 0 and self.num_passes == 0

    @property
    def has_begun_text(self) -> bool:
        """Whether its last pass was that one."""
        return self.prompt_length > 0 and self.num_passes == 1

    @property
    def text_length(self) -> int:
        """The length of the text up to the tokens that it reads, without draft tokens."""
        return self.start + len(self.token_ids)

    def read_again(self, token_ids: Sequence[int]) -> None:
        """Makes it read the text from the beginning: `token_ids`, then its own tokens."""
        self.token_ids[:0] = token_ids
        self.start, self.copy_from = 0, None

    def num_skippable(self, num_known: int) -> int:
        """How many of its first tokens need not be read if a slot holds `num_known` of them.

        The last token, tokens that have logits, and with a `capture` the last FEWEST_CAPTURED ones
        are always read.
        """
        num_needed = max(FEWEST_CAPTURED if self.capture else 1, self.num_logits)
        return max(0, min(num_known, len(self.token_ids) - num_needed))

    def skip(self, source: int, num_tokens: int) -> None:
        """Skips the first `num_tokens` tokens, which slot `source` has read."""
        del self.token_ids[:num_tokens]
        self.start = num_tokens
        self.copy_from = None if source == self.slot else (source, 0)

    def begin_pass(self, now_ns: int, num_tokens: int, num_sessions: int, num_threads: int) -> None:
        self._batch = (num_tokens, num_sessions, num_threads)
        self._queue_ns = self._queue_ns or now_ns - self._submitted_ns
        self.num_passes += 1
        self.num_missed = 0

    def finish_pass(self, chunk: Chunk, result: Result, is_sound: bool, forward_ns: int) -> None:
        """Processes the result of a pass; resolves `done` if the job is complete.

        Args:
            result: the chunk's logits or choices.
            is_sound: whether the chunk's keys and values are finite.
            forward_ns: the duration of the pass.
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
        self._note_captured(chunk)
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
        except Exception as error:  # fails this session only
            self.start = chunk.start
            self.done.set_exception(error)
            return
        self._sample_ns += time.perf_counter_ns() - began
        if not self.token_ids:
            self.done.set_result(self.timings)

    def take_hidden_states(self) -> tuple[int, NDArray[np.int16]] | None:
        """The hidden states of the tokens read since the last call; None if there are none.

        Returns the index in the sequence of the first of these tokens, and the rows
        [num_tokens, num_layers * hidden_size], including those of rejected draft tokens, as the
        bits of bfloat16. May be called by `advance` or after it, on any thread: nothing is computed
        here by torch, which would keep workers for that thread (see `in_own_thread`).
        """
        if not self._captured:
            return None
        starts, rows = zip(*self._captured, strict=True)
        self._captured = []
        return starts[0], np.concatenate(rows)

    def _note_captured(self, chunk: Chunk) -> None:
        if chunk.capture is None or chunk.capture.rows is None:
            return
        rows, chunk.capture.rows = chunk.capture.rows, None
        if self._captured and chunk.start != self._captured[-1][0] + len(self._captured[-1][1]):
            self._captured = []  # it reads again from another index on
        bits = rows.bfloat16().view(torch.int16).cpu().numpy()
        self._captured.append((chunk.start, bits))
        first = 0 if chunk.capture.window is None else chunk.end - chunk.capture.window
        while len(self._captured) > 1 and self._captured[1][0] <= first:
            del self._captured[0]

    @property
    def timings(self) -> Timings:
        return Timings(self._queue_ns, self._forward_ns, self._sample_ns, 0, *self._batch)


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Jobs in order of precedence for the next pass.

    Shortest first, so that a long prompt does not delay steps. A job that was left out of
    MAX_MISSED passes takes precedence, so that none starves. Background jobs are left out if there
    are others.
    """
    waiting = [job for job in jobs if not job.is_background] or jobs
    return sorted(waiting, key=lambda job: (-(job.num_missed // MAX_MISSED), len(job.token_ids)))
