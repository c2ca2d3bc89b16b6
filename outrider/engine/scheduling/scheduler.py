"""Combines the pending jobs of all sessions into forward passes, on one thread.

Request handlers never run the model. They submit a job for their slot and await its future. Each
pass takes a chunk of every pending job, within a token budget. Short jobs come first, so that a
long prompt, read in chunks, does not delay steps; background jobs run when there are no others. If
any slot holds a prefix of a prompt, the prefix is copied instead of read.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch

from outrider.engine.cache.memory import NO_LIMITS, TokenLimits
from outrider.engine.chunk import Chunk
from outrider.engine.scheduling.admission import Admission
from outrider.engine.scheduling.batch_limits import BatchLimits, Passes
from outrider.engine.scheduling.job import Job, in_order
from outrider.engine.scheduling.priority import give_way
from outrider.engine.scheduling.returns import GiveBack, MemoryReturns
from outrider.engine.scheduling.slots import Slots
from outrider.engine.scheduling.supervisor import Supervisor
from outrider.engine.scheduling.threads import AdaptiveThreads
from outrider.engine.soundness import Result
from outrider.errors import Cancelled, ServiceUnavailable
from outrider.protocol.messages import Timings

log = logging.getLogger(__name__)

# A pass that reads a prompt takes several times as long as a step, so before it the scheduler
# waits longer for sessions that are about to come back.
_LONGEST_STEP = 16
_BEFORE_PROMPTS = 5


class Scheduler(Admission):
    """Owns the engine's thread and its slots. The counts are for metrics.

    Args:
        limits: how many tokens the slots may hold.
        give_back: returns the memory of others, as `SlotCache.give_back` does.
    """

    def __init__(
        self,
        engine: Passes,
        num_slots: int,
        batch_limits: BatchLimits = BatchLimits(),  # noqa: B008
        threads: AdaptiveThreads | None = None,
        limits: TokenLimits = NO_LIMITS,
        give_back: GiveBack = lambda slot, begin: iter(()),
    ) -> None:
        self.batch_limits = batch_limits
        self.threads = threads or AdaptiveThreads({torch.get_num_threads(): 0.0})
        self.num_reused_tokens = 0  # copied from a slot instead of being read
        self._engine = engine
        super().__init__(Slots(num_slots, limits))
        self._returns = MemoryReturns(give_back)
        self._supervisor = Supervisor()
        self._begun: set[int] = set()  # slots of texts that a pass has begun to read
        # Sessions that got an answer in the latest pass that gave any, and may soon come back.
        self._answered: set[int] = set()
        self._has_answered = True  # whether a job ended with the latest pass
        self._jobs: list[Job] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_jobs(self) -> int:
        """How many jobs are pending or in a pass."""
        return len(self._jobs)

    def release(self, slot: int, is_copy: bool = False) -> None:
        """Releases a slot and cancels its pending jobs; see `Slots.release`."""
        with self._changed:
            self._cancel_jobs(self._slots.release([slot], is_copy))

    def submit(self, job: Job) -> Future[Timings]:
        """Queues a job; its future fails if the pass does. Raises ServiceUnavailable if closed."""
        with self._changed:
            if self._closed:
                raise self._supervisor.failure or ServiceUnavailable("the service is shutting down")
            job.done.set_running_or_notify_cancel()  # from here on only `release` cancels it
            self._jobs.append(job)
            self._changed.notify()
        return job.done

    def follow_up(self, job: Job, make: Callable[[], Sequence[Job]]) -> None:
        """Queues the jobs that `make` returns for the next pass. Called by `advance` of `job`.

        Does nothing if `job` has been dropped. `job` is not dropped while `make` runs. Once this is
        closed, they fail like all that is pending, so that nobody waits for them.
        """
        with self._changed:
            if not job.is_dropped:
                for follower in make():
                    follower.done.set_running_or_notify_cancel()
                    self._jobs.append(follower)

    def drop(self, jobs: Sequence[Job]) -> None:
        """Drops jobs: their `done` is never resolved. A pass that includes them continues.

        Jobs from `follow_up` are dropped, too, if `make` adds them to `jobs`.
        """
        with self._changed:
            for job in jobs:
                job.is_dropped = True
            self._jobs = [job for job in self._jobs if not job.is_dropped]
            self._changed.notify()

    def check(self) -> None:
        """Raises EngineFailed if the engine cannot run passes any more. Call it once a second."""
        self._supervisor.look(is_busy=any(map(self._may_run, list(self._jobs))))

    def close(self) -> None:
        """Ends the thread after the current pass; pending jobs fail."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._supervisor.failure is None:  # else the thread may never end
            self._thread.join()

    def _run(self) -> None:
        try:
            give_way()
            self.threads.begin()
            while packed := self._wait_for_chunks():
                self._work(packed)
        except BaseException as error:
            log.critical("the engine's thread ends", exc_info=True)
            self._close_with(self._supervisor.end(error))

    def _work(self, packed: Sequence[tuple[Job, Chunk]]) -> None:
        """Runs one pass and gives its jobs their results, or its error."""
        try:
            self._run_pass([job for job, _ in packed], [chunk for _, chunk in packed])
        except Exception as error:
            log.exception("a forward pass failed")
            for job, _ in packed:
                if not job.done.done():
                    job.done.set_exception(error)
            self._end_pass(packed, failed=True)
        else:
            self._end_pass(packed, failed=False)

    def _wait_for_chunks(self) -> list[tuple[Job, Chunk]]:
        """The next pass's jobs and their chunks; empty when closed."""
        while self._wait_for_jobs():
            # Without the lock: testing how busy the machine is takes some milliseconds.
            has_changed = self.threads.change(between_texts=not self._begun)
            with self._changed:
                if has_changed and not self.threads.any_time:
                    self._slots.forget()  # with another number of threads, bits differ
                if packed := self._pack():
                    return packed
        return []

    def _wait_for_jobs(self) -> bool:
        """Returns once there are jobs for the next pass; False when closed."""
        with self._changed:
            while not self._closed:
                if not any(map(self._may_run, self._jobs)):
                    self._rest()
                    continue
                self._gather()
                # Jobs may have been dropped while it waited for others.
                if self._jobs and not self._closed:
                    return True
        self._close_with(ServiceUnavailable("the service is shutting down"))
        return False

    def _rest(self) -> None:
        """Waits for a change; before that gives back memory, without the lock."""
        self._returns.add(self._slots.surplus())
        if not self._returns:
            self._changed.wait()
            return
        self._changed.release()
        try:
            self._returns.go_on()
        finally:
            self._changed.acquire()

    def _may_run(self, job: Job) -> bool:
        return job.slot in self._begun or not (self._begun and self.threads.holds_up)

    def _close_with(self, error: ServiceUnavailable) -> None:
        with self._changed:
            self._closed = True
            for job in self._jobs:
                if not job.done.done():
                    job.done.set_exception(error)
            self._jobs = []

    def _gather(self) -> None:
        """Waits for more sessions while they keep arriving: a pass costs little more with them."""
        while missing := self._answered - {job.session for job in self._jobs}:
            if self._closed or all(job.is_background for job in self._jobs):
                return
            reads_prompt = any(len(job.token_ids) > _LONGEST_STEP for job in self._jobs)
            seconds = self.batch_limits.gather_seconds * (_BEFORE_PROMPTS if reads_prompt else 1)
            if not self._changed.wait(seconds):
                self._answered -= missing

    def _pack(self) -> list[tuple[Job, Chunk]]:
        """A chunk of each job in order, until the token budget is spent.

        Late jobs get half of it together, so that the others need not wait for them. The first
        job gets a chunk even if its logits exceed the budget. Copies between slots are made in
        this order, before anything is written.
        """
        self._returns.add(self._slots.surplus())  # before any copy is made of it
        packed: list[tuple[Job, Chunk]] = []
        budget = min(self.batch_limits.token_budget, self.batch_limits.widest)
        if len(self._jobs) == 1 and not self._has_answered:
            # The last pass was this job's alone, too: no other session is about to come back.
            budget = self.batch_limits.widest
        budget_of_late = budget // 2
        for job in in_order([job for job in self._jobs if self._may_run(job)]):
            source, num_known = self._slots.place(job, self._engine.rope)
            allowed = min(budget, budget_of_late) if job.is_late else budget
            allowed = allowed if packed else max(allowed, job.num_logits)
            if job.num_next(allowed, num_known) == 0:
                job.num_missed += 1  # a chunk resets it
                continue
            if num_known:
                job.skip(source, num_known)
                self.num_reused_tokens += num_known
            chunk = job.next_chunk(allowed)
            self._slots.overwrite(job.slot, chunk.start, chunk.copy_from)
            self._slots.note_written(job.slot, chunk.end + job.num_at_once - 1)
            packed.append((job, chunk))
            budget -= len(chunk.token_ids)
            budget_of_late -= len(chunk.token_ids) if job.is_late else 0
        self._slots.begin_pass(job.slot for job, _ in packed)
        self._begun.update(job.slot for job, _ in packed)
        return packed

    def _run_pass(self, jobs: Sequence[Job], chunks: Sequence[Chunk]) -> None:
        began = time.perf_counter_ns()
        if self._returns:
            self._returns.finish(None if any(job.begins_text for job in jobs) else chunks)
        num_tokens = sum(len(chunk.token_ids) for chunk in chunks)
        for job in jobs:
            job.begin_pass(began, num_tokens, len(chunks), self.threads.current)
        results = self._results(jobs, chunks)
        forward_ns = time.perf_counter_ns() - began
        self.threads.observe(num_tokens, forward_ns / 1e9)
        are_sound = self._engine.clear_unsound(chunks, results)
        for job, chunk, result, is_sound in zip(jobs, chunks, results, are_sound, strict=True):
            job.finish_pass(chunk, result, is_sound, forward_ns)

    def _results(self, jobs: Sequence[Job], chunks: Sequence[Chunk]) -> Sequence[Result]:
        """For each job its choices, if the engine can choose for all of them; else its logits."""
        specs = [job.spec for job in jobs if job.spec is not None]
        if len(specs) < len(jobs) or not all(chunk.num_logits for chunk in chunks):
            return self._engine.forward(chunks)
        return self._engine.choose(chunks, specs, min(job.num_at_once for job in jobs))

    def _end_pass(self, packed: Sequence[tuple[Job, Chunk]], failed: bool) -> None:
        with self._changed:
            for job, _ in packed:
                if failed:
                    self._slots.forget([job.slot])
                else:
                    self._slots.append(job.slot, job.read)
                    if job.has_begun_text:
                        self._slots.trim(job.slot, job.text_length)
            self._jobs = [job for job in self._jobs if not job.done.done()]
            self._has_answered = any(job.done.done() for job, _ in packed)
            # Background jobs are not waited for, so their sessions do not come back after them.
            if any(not job.is_background for job, _ in packed):
                self._answered = {job.session for job, _ in packed if job.done.done()}
            self._cancel_jobs(self._slots.end_pass())
        self._supervisor.end_pass(failed)

    def _cancel_jobs(self, slots: set[int]) -> None:
        """Cancels the jobs of these slots, whose sessions have ended."""
        if not slots:
            return
        for job in self._jobs:
            if job.slot in slots:
                job.done.set_exception(Cancelled("the session was closed"))
        self._jobs = [job for job in self._jobs if job.slot not in slots]
        self._answered -= slots
        self._begun -= slots
        self._changed.notify()
