"""The slots of an engine: which are taken, which requests wait, and which tokens each slot holds.

A slot keeps its keys and values after it is released, within a limit. If the slot of a running or
an ended session holds a prefix of a prompt, this prefix need not be read again.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

from outrider.engine.attention.rope import Rope
from outrider.engine.cache.memory import NO_LIMITS, TokenLimits
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

    def __init__(self, num_slots: int, limits: TokenLimits = NO_LIMITS) -> None:
        self._limits = limits
        # The slot that was released first is taken first, so that contents survive for long.
        self._free = deque(range(num_slots))
        self._released: set[int] = set()
        self._in_pass: set[int] = set()
        self._waiting: deque[tuple[Future[int], int]] = deque()
        self._contents: list[list[int]] = [[] for _ in range(num_slots)]
        self._copies: set[int] = set()  # slots whose content some other slot has, too
        self._held = [0] * num_slots  # tokens of each slot that take memory
        self._surplus: dict[int, int] = {}
        self._reserved: dict[int, int] = {}  # by slot that is taken: tokens it may hold
        self.frequencies = [0] * num_slots
        """`Rope.frequencies` of the text in each slot."""

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_waiting(self) -> int:
        """How many requests are waiting for a slot."""
        return sum(not future.cancelled() for future, _ in self._waiting)

    @property
    def num_reserved(self) -> int:
        """Tokens that sessions may hold, in all of their slots."""
        return sum(self._reserved.values())

    @property
    def num_held(self) -> int:
        """Tokens that slots hold, those of ended sessions included."""
        return sum(self._held)

    def take(self, count: int, length: int) -> list[int]:
        """Takes `count` slots for up to `length` tokens each, or none. Raises NoFreeSlot.

        With length 0 a session reserves nothing.
        """
        if self.num_waiting or not self._has_room(count, length):
            raise self._full()
        return [self._take(length) for _ in range(count)]

    def request(self, max_waiting: int, length: int) -> Future[int]:
        """A future slot for up to `length` tokens; requests are served in order.

        Cancelling the future gives up the place in the queue. Raises NoFreeSlot if `max_waiting`
        requests are already waiting.
        """
        self._waiting = deque(each for each in self._waiting if not each[0].cancelled())
        num_waiting = len(self._waiting)
        if num_waiting >= max_waiting and (num_waiting or not self._has_room(1, length)):
            raise self._full()
        future: Future[int] = Future()
        self._waiting.append((future, length))
        self.serve_waiting()
        return future

    def serve_waiting(self) -> None:
        """Gives slots to waiting requests as long as there is room."""
        while self._waiting:
            future, length = self._waiting[0]
            if not future.cancelled() and not self._has_room(1, length):
                return
            self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                future.set_result(self._take(length))

    def release(self, slots: Sequence[int], is_copy: bool = False) -> set[int]:
        """Releases slots; returns those that are free immediately.

        Args:
            is_copy: another slot has the same contents, so these are not kept.
        """
        self._released.update(slots)
        if is_copy:
            self._copies.update(slots)
        return self._free_released()

    def surplus(self) -> dict[int, int]:
        """Slots whose contents were cut since the last call, and how many tokens they still hold.

        The memory behind these tokens must be given back before the next pass that uses the slot.
        """
        self._keep_within_limits()
        surplus, self._surplus = self._surplus, {}
        return surplus

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

    def note_written(self, slot: int, end: int) -> None:
        """Notes that a pass writes up to token `end` of the slot."""
        self._held[slot] = max(self._held[slot], end)

    def append(self, slot: int, token_ids: Sequence[int]) -> None:
        """Notes that a pass has read these tokens into the slot."""
        self._contents[slot].extend(token_ids)

    def trim(self, slot: int, length: int) -> None:
        """Gives up what an earlier, longer text has left behind one that has `length` tokens."""
        self._cut(slot, max(length, len(self._contents[slot])))

    def forget(self, slots: Iterable[int] | None = None) -> None:
        """Forgets the contents of these slots; None: of all."""
        for slot in range(len(self._contents)) if slots is None else slots:
            self._contents[slot] = []

    def _free_released(self) -> set[int]:
        ready = self._released - self._in_pass
        self._released -= ready
        self._free.extend(ready)
        for slot in ready:
            self._reserved.pop(slot, None)
            if slot in self._copies:
                self._cut(slot, 0)
        self._copies -= ready
        self.serve_waiting()
        return ready

    def _keep_within_limits(self) -> None:
        """Makes the slots that have been free for the longest time forget what they hold."""
        if self._limits.num_kept is None:
            return
        room = self._limits.num_kept
        if self._limits.num_tokens is not None:
            room = min(room, self._limits.num_tokens - self.num_reserved)
        num_kept = sum(self._held[slot] for slot in self._free)
        for slot in self._free:
            if num_kept <= room:
                return
            num_kept -= self._held[slot]
            self._cut(slot, 0)

    def _cut(self, slot: int, length: int) -> None:
        """Makes a slot hold no more than `length` tokens, where memory follows the tokens."""
        if self._held[slot] > length and self._limits.num_kept is not None:
            self._held[slot] = self._surplus[slot] = length
            del self._contents[slot][length:]

    def _has_room(self, count: int, length: int) -> bool:
        most = self._limits.num_tokens
        return len(self._free) >= count and (
            most is None or self.num_reserved + count * length <= most
        )

    def _take(self, length: int) -> int:
        slot = self._free.popleft()
        self._reserved[slot] = length
        if length:
            self._cut(slot, length)
        return slot

    def _full(self) -> NoFreeSlot:
        what = "the tokens" if self._free else "all sessions"
        return NoFreeSlot(f"{what} of this service are taken", retry_after=RETRY_SECONDS)
