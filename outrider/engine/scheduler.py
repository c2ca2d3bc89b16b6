"""Merges the pending work of all sessions into forward passes, on one thread.

Request handlers never run the model. They submit a job for their slot and await
its future; each pass takes a chunk of every pending job, within a token budget.
Short jobs come first, so that a long prompt, taken in chunks, delays nobody, and
background jobs come when there are no others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from torch import Tensor

from outrider.engine.attention import Chunk
from outrider.errors import Cancelled, NoFreeSlot, ServiceUnavailable
from outrider.messages import Timings

log = logging.getLogger(__name__)

DEFAULT_TOKEN_BUDGET = 256


class Passes(Protocol):
    """What the scheduler needs of an engine."""

    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor]: ...


class Job:
    """Tokens for one slot to read, and what to do with the logits after them.

    Subclasses implement `advance`; everything else belongs to the scheduler.
    `done` gives the durations, all but the total, once `advance` wants no more.

    Args:
        start: how many tokens of the slot are valid; `token_ids` follow them.
        num_logits: how many rows of logits `advance` wants, for the last tokens.
        copy_from: a slot and a place: the tokens from there up to `start` are valid
            only there, and are copied first.
        is_background: waits until no other job does, and may be dropped.
    """

    def __init__(
        self,
        slot: int,
        start: int,
        token_ids: Sequence[int],
        num_logits: int,
        copy_from: tuple[int, int] | None = None,
        is_background: bool = False,
    ) -> None:
        self.slot = slot
        self.start = start
        self.token_ids = list(token_ids)
        self.num_logits = num_logits
        self.copy_from = copy_from
        self.is_background = is_background
        self.is_dropped = False
        self.done: Future[Timings] = Future()
        self._submitted_ns = time.perf_counter_ns()
        self._queue_ns = self._forward_ns = self._sample_ns = 0

    def advance(self, logits: Tensor) -> list[int]:
        """Takes [num_logits, vocab_size]; returns the tokens to read next, or none when done."""
        raise NotImplementedError

    def next_chunk(self, budget: int) -> Chunk:
        """At most `budget` tokens, maybe none. Those whose logits are wanted stay together."""
        num_tokens = len(self.token_ids)
        if num_tokens <= budget:
            return Chunk(self.slot, self.start, self.token_ids[:], self.num_logits, self.copy_from)
        num_taken = max(0, min(budget, num_tokens - self.num_logits))
        return Chunk(self.slot, self.start, self.token_ids[:num_taken], 0, self.copy_from)

    def begin_pass(self, now_ns: int) -> None:
        self._queue_ns = self._queue_ns or now_ns - self._submitted_ns

    def finish_pass(self, chunk: Chunk, logits: Tensor, forward_ns: int) -> None:
        """Books a pass; resolves `done` when the job wants no more."""
        self._forward_ns += forward_ns
        self.start = chunk.end
        self.copy_from = None
        del self.token_ids[: len(chunk.token_ids)]
        if self.token_ids or self.is_dropped:
            return
        began = time.perf_counter_ns()
        try:
            self.token_ids = self.advance(logits)
        except Exception as error:  # one session's trouble is not the others'
            self.done.set_exception(error)
            return
        self._sample_ns += time.perf_counter_ns() - began
        if not self.token_ids:
            self.done.set_result(self.timings)

    @property
    def timings(self) -> Timings:
        return Timings(self._queue_ns, self._forward_ns, self._sample_ns)


class Scheduler:
    """Owns the engine's thread and the slots.

    Slots are handed out at once or not at all. A slot that is released while a
    pass uses it is handed out again only after that pass.
    """

    def __init__(
        self, engine: Passes, num_slots: int, token_budget: int = DEFAULT_TOKEN_BUDGET
    ) -> None:
        self._engine = engine
        self._token_budget = token_budget
        self._free_slots = list(range(num_slots))
        self._released: set[int] = set()  # to be freed after the pass that uses them
        self._in_pass: set[int] = set()
        self._jobs: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    def acquire(self) -> int:
        """Takes a slot. Raises NoFreeSlot."""
        return self.acquire_all(1)[0]

    def acquire_all(self, count: int) -> list[int]:
        """Takes so many slots, or none. Raises NoFreeSlot."""
        with self._changed:
            if len(self._free_slots) < count:
                raise NoFreeSlot("all sessions of this service are taken")
            return [self._free_slots.pop() for _ in range(count)]

    def release(self, slot: int) -> None:
        """Gives a slot back and cancels its pending jobs."""
        with self._changed:
            self._released.add(slot)
            self._free_released()

    def submit(self, job: Job) -> Future[Timings]:
        """Queues a job; its future fails if the pass does. Raises ServiceUnavailable if closed."""
        with self._changed:
            if self._closed:
                raise ServiceUnavailable("the service is shutting down")
            job.done.set_running_or_notify_cancel()  # from here on only `release` cancels it
            self._jobs.append(job)
            self._changed.notify()
        return job.done

    def drop(self, job: Job) -> None:
        """Gives a background job up: its `done` never comes. A pass that it is in goes on."""
        with self._changed:
            job.is_dropped = True
            self._jobs = [job for job in self._jobs if not job.is_dropped]

    def close(self) -> None:
        """Ends the thread after the pass that runs; pending jobs are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while chunks := self._wait_for_chunks():
            try:
                self._run_pass([job for job, _ in chunks], [chunk for _, chunk in chunks])
            except Exception as error:
                log.exception("a forward pass failed")
                for job, _ in chunks:
                    if not job.done.done():
                        job.done.set_exception(error)
            with self._changed:
                self._jobs = [job for job in self._jobs if not job.done.done()]
                self._in_pass.clear()
                self._free_released()

    def _wait_for_chunks(self) -> list[tuple[Job, Chunk]]:
        """The next pass's jobs and their chunks; empty when closed."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if self._closed:
                for job in self._jobs:
                    job.done.set_exception(ServiceUnavailable("the service is shutting down"))
                self._jobs = []
                return []
            packed = self._pack()
            self._in_pass.update(job.slot for job, _ in packed)
            return packed

    def _free_released(self) -> None:
        """Frees released slots that no running pass uses, and cancels their jobs."""
        ready = self._released - self._in_pass
        for job in self._jobs:
            if job.slot in ready:
                job.done.set_exception(Cancelled("the session was closed"))
        self._jobs = [job for job in self._jobs if job.slot not in ready]
        self._free_slots.extend(ready)
        self._released -= ready

    def _pack(self) -> list[tuple[Job, Chunk]]:
        """A chunk of each job, shortest first, until the token budget is spent.

        The first job gets one even if the logits that it wants exceed the budget.
        Background jobs are left out as long as there are others.
        """
        packed: list[tuple[Job, Chunk]] = []
        budget = self._token_budget
        jobs = [job for job in self._jobs if not job.is_background] or self._jobs
        for job in sorted(jobs, key=lambda job: len(job.token_ids)):
            chunk = job.next_chunk(budget if packed else max(budget, job.num_logits))
            if chunk.token_ids:
                packed.append((job, chunk))
                budget -= len(chunk.token_ids)
        return packed

    def _run_pass(self, jobs: Sequence[Job], chunks: Sequence[Chunk]) -> None:
        began = time.perf_counter_ns()
        for job in jobs:
            job.begin_pass(began)
        logits = self._engine.forward(chunks)
        forward_ns = time.perf_counter_ns() - began
        for job, chunk, rows in zip(jobs, chunks, logits, strict=True):
            job.finish_pass(chunk, rows, forward_ns)
