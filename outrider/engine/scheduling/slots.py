"""The slots of an engine: which are taken, which requests wait, and which tokens each slot holds.

A slot keeps its keys and values after it is released. If the slot of a running or an ended session
holds a prefix of a prompt, this prefix need not be read again.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

from outrider.engine.attention.rope import Rope
from outrider.engine.scheduling.job import Job
from outrider.engine.scheduling.sequence import common_length
from outrider.errors import NoFreeSlot

# Copying shorter prefixes takes about as long as reading them.
_SHORTEST_PREFIX = 16

# After how many seconds a refused session should retry.
RETRY_SECONDS = 0.25


class Slots:
    """The state of all slots. Not thread-safe: the scheduler's lock protects it.

    A slot that is released while a pass uses it becomes free after that pass.
    """

    def __init__(self, num_slots: int) -> None:
        # The slot that was released first is taken first, so that contents survive for long.
        self._free = deque(range(num_slots))
        self._released: set[int] = set()
        self._in_pass: set[int] = set()
        self._waiting: deque[Future[int]] = deque()
        self._contents: list[list[int]] = [[] for _ in range(num_slots)]
        self.frequencies = [0] * num_slots
        """`Rope.frequencies` of the text in each slot."""

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_waiting(self) -> int:
        """How many requests are waiting for a slot."""
        return sum(not future.cancelled() for future in self._waiting)

    def take(self, count: int) -> list[int]:
        """Takes `count` slots at once, or none. Raises NoFreeSlot."""
        if len(self._free) < count or self.num_waiting:
            raise _none_is_free()
        return [self._free.popleft() for _ in range(count)]

    def request(self, max_waiting: int) -> Future[int]:
        """A future slot; requests are served in order.

        Cancelling the future gives up the place in the queue. Raises NoFreeSlot if `max_waiting`
        requests are already waiting.
        """
        future: Future[int] = Future()
        self._waiting = deque(waiting for waiting in self._waiting if not waiting.cancelled())
        if not self._free and self.num_waiting >= max_waiting:
            raise _none_is_free()
        self._waiting.append(future)
        self._serve_waiting()
        return future

    def release(self, slots: Iterable[int]) -> set[int]:
        """Releases slots; returns those that are free immediately."""
        self._released.update(slots)
        return self._free_released()

    def begin_pass(self, slots: Iterable[int]) -> None:
        self._in_pass.update(slots)

    def end_pass(self) -> set[int]:
        """Ends a pass; returns the slots that were released during it, which are free now."""
        self._in_pass.clear()
        return self._free_released()

    def place(self, job: Job, rope: Rope) -> tuple[int, int]:
        """The slot whose prefix a job may reuse, and how many tokens it may skip.

        If the text has grown beyond the rotary frequencies of its slot, the job reads all of it
        again.
        """
        frequencies = rope.frequencies(job.text_length)
        if rope.reads_again and job.start:
            sources = {job.slot} if job.copy_from is None else {job.slot, job.copy_from[0]}
            if any(self.frequencies[source] != frequencies for source in sources):
                job.read_again(self.held(job.slot, job.start, job.copy_from))
        if job.start or job.copy_from is not None:
            return job.slot, 0
        job.prompt_length = job.text_length
        source, num_known = self.longest_prefix(job.slot, job.token_ids, frequencies)
        if self.frequencies[job.slot] != frequencies:
            self.forget([job.slot])  # also if this pass has no room for the job
            self.frequencies[job.slot] = frequencies
        return source, job.num_skippable(num_known)

    def longest_prefix(
        self, slot: int, token_ids: Sequence[int], frequencies: int = 0
    ) -> tuple[int, int]:
        """The slot that holds the longest prefix of `token_ids`, and the length of that prefix.

        Only slots whose text was read with these `frequencies` count. `slot` itself is preferred;
        in other slots, prefixes that are too short to be worth a copy do not count.
        """
        lengths = {
            source: common_length(contents, token_ids)
            for source, contents in enumerate(self._contents)
            if self.frequencies[source] == frequencies
        }
        best = max(lengths, key=lambda source: (lengths[source], source == slot), default=slot)
        if best != slot and lengths[best] < _SHORTEST_PREFIX:
            best = slot
        return best, lengths.get(best, 0)

    def overwrite(self, slot: int, start: int, copy_from: tuple[int, int] | None) -> None:
        """Notes that a pass will write to a slot after its first `start` tokens, some copied."""
        if copy_from is None:
            del self._contents[slot][start:]
        else:
            self._contents[slot] = self.held(slot, start, copy_from)
            self.frequencies[slot] = self.frequencies[copy_from[0]]

    def held(self, slot: int, start: int, copy_from: tuple[int, int] | None) -> list[int]:
        """The first `start` tokens of a slot after the copy."""
        contents = self._contents[slot]
        if copy_from is None:
            return contents[:start]
        source, begin = copy_from
        return contents[:begin] + self._contents[source][begin:start]

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        """Notes that a pass has read these tokens into the slot."""
        self._contents[slot].extend(token_ids)

    def forget(self, slots: Iterable[int] | None = None) -> None:
        """Forgets the contents of these slots; None: of all."""
        for slot in range(len(self._contents)) if slots is None else slots:
            self._contents[slot] = []

    def _free_released(self) -> set[int]:
        ready = self._released - self._in_pass
        self._released -= ready
        self._free.extend(ready)
        self._serve_waiting()
        return ready

    def _serve_waiting(self) -> None:
        while self._waiting and self._free:
            future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                future.set_result(self._free.popleft())


def _none_is_free() -> NoFreeSlot:
    return NoFreeSlot("all sessions of this service are taken", retry_after=RETRY_SECONDS)
