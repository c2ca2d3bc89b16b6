"""The number of computing threads: fewer while other programs need the cores.

The threads of an operation wait for each other at its end, several hundred times in a pass. If
another program occupies the core of one thread, all threads wait, and a pass can take tens of times
as long. Then fewer threads are faster.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from outrider.cores import available_cores
from outrider.engine.chunk import Chunk
from outrider.engine.scheduling.batch_limits import best_seconds
from outrider.engine.shapes import num_threads

if TYPE_CHECKING:
    from outrider.engine.engine import Engine

log = logging.getLogger(__name__)

# A pass may take three times as long as on a quiet machine. Time beyond that is summed, and time
# below it subtracted (CUSUM, Page 1954). At half a second the cores are tested. A draft on the
# same cores, which works now and then, costs less. Long passes depend on too much else, and are
# not compared.
_SLOW = 3.0
_LOST_SECONDS = 0.5
_LONGEST_STEP = 16

# Seconds between tests of a busy machine: longer and longer while each return to more threads
# fails within the longest pause.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
_NUM_QUIET = 2
# The shortest pause after a test that found it busy: a test takes a hundredth of that.
_BUSY_PAUSE = 1.0

# Running texts keep their number of threads where it would change their bits. After this many
# seconds new texts wait until these have ended.
DRAIN_SECONDS = 5.0

# A parallel operation takes some 20 us. One that takes longer than this has waited.
_WAITED_SECONDS = 0.0005
_LOOK_SECONDS = 0.01
_BUSY_SHARE = 0.25
# Elements for each thread: fewer are computed by one.
_GRAIN = 32768


def thread_counts(most: int) -> tuple[int, ...]:
    """The numbers of threads to choose among, descending: all, half, one."""
    return tuple(sorted({most, max(1, most // 2), 1}, reverse=True))


def is_busy(count: int) -> bool:
    """Whether `count` threads of this process currently wait for cores. Takes about 10 ms."""
    waited = 0.0
    with num_threads(count):
        tensor = torch.zeros(count * _GRAIN)
        tensor.add_(1)  # wakes the threads
        began = before = time.perf_counter()
        while before - began < _LOOK_SECONDS:
            tensor.add_(1)
            now = time.perf_counter()
            waited += now - before if now - before > _WAITED_SECONDS else 0.0
            before = now
    return waited > _BUSY_SHARE * (before - began)


def use_threads(most: int | None, adapt: bool) -> tuple[int, ...]:
    """Sets the largest number of threads that currently do not wait for cores.

    Args:
        most: the largest number of threads; None: the number of cores.
        adapt: whether fewer may be used.

    Returns the numbers of threads to choose among.
    """
    most = most or min(torch.get_num_threads(), available_cores())
    counts = thread_counts(most) if adapt else (most,)
    use_free_cores(counts)
    return counts


def use_free_cores(counts: Sequence[int]) -> None:
    """Sets the largest of these numbers of threads that currently do not wait for cores."""
    free = (count for count in counts[:-1] if not is_busy(count))
    torch.set_num_threads(next(free, counts[-1]))


def measured_threads(engine: "Engine") -> "AdaptiveThreads":
    """Measures a loaded engine with each number of threads, if it may use several numbers."""
    counts, current = engine.thread_counts, torch.get_num_threads()
    if len(counts) == 1:
        return AdaptiveThreads({current if engine.device.type == "cpu" else 0: 0.0})
    seconds: dict[int, float] = {}
    for count in reversed(counts):
        if count <= current:  # with more, the machine is busy
            with num_threads(count):
                seconds[count] = best_seconds(engine, [Chunk(0, 0, [0], 1)])
        seconds[count] = min(seconds.values())  # more threads are not expected to be slower
    claim = engine.batch_invariance
    any_time = claim is None or not claim.holds or claim.across_threads
    return AdaptiveThreads(seconds, engine.batch_limits.token_seconds, any_time, current)


class AdaptiveThreads:
    """Chooses the number of threads from the times of passes. Used on the engine's thread only.

    Args:
        step_seconds: by number of threads, the time of a pass of one token on an idle machine.
            0 threads: the device is not a CPU.
        token_seconds: the marginal cost of a token.
        any_time: whether the number may change during a text, since that does not change its bits.
        current: the initial number.
    """

    def __init__(
        self,
        step_seconds: Mapping[int, float],
        token_seconds: float = 0.0,
        any_time: bool = True,
        current: int | None = None,
        is_busy: Callable[[int], bool] = is_busy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = max(step_seconds)
        self.current = self._wanted = current or self.most
        self.any_time = any_time
        self._step_seconds = dict(step_seconds)
        self._token_seconds = token_seconds
        self._is_busy = is_busy
        self._clock = clock
        self._lost_seconds = 0.0
        self._pause = _SHORTEST_PAUSE
        self._next_look = 0.0
        self._num_quiet = 0
        self._wanted_since = 0.0
        self._raised_at = float("-inf")

    @property
    def holds_up(self) -> bool:
        """Whether new texts must wait so that the number can be changed."""
        if self.any_time or self._wanted == self.current:
            return False
        return self._clock() - self._wanted_since >= DRAIN_SECONDS

    def begin(self) -> None:
        """Sets the number. Call it on the engine's thread: the setting is per thread."""
        if self.current:
            torch.set_num_threads(self.current)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Notes the time of a pass of `num_tokens` tokens."""
        if len(self._step_seconds) == 1 or num_tokens > _LONGEST_STEP:
            return
        step = self._step_seconds[self.current]
        if num_tokens == 1 and seconds < step:  # which was measured while others computed
            self._step_seconds[self.current] = step = seconds
        expected = step + self._token_seconds * (num_tokens - 1)
        self._lost_seconds = max(0.0, self._lost_seconds + seconds - _SLOW * expected)

    def change(self, between_texts: bool) -> bool:
        """Changes the number if that is due and allowed; returns whether it did.

        Args:
            between_texts: whether no text is running.
        """
        if self._clock() >= self._next_look:
            self._look()
        if self._wanted == self.current or not (between_texts or self.any_time):
            return False
        is_less = self._wanted < self.current
        reason = "other programs need the cores" if is_less else "the cores are free again"
        log.warning("CPU threads: %d instead of %d: %s", self._wanted, self.current, reason)
        if not is_less:
            self._raised_at = self._clock()
        self.current = self._wanted
        self._lost_seconds = 0.0
        torch.set_num_threads(self.current)
        return True

    def _look(self) -> None:
        """Tests whether another number is due, or one that was due no longer is."""
        if self._wanted != self.current:
            is_busy = self._is_busy(max(self._wanted, self.current))
            self._num_quiet = 0 if is_busy else self._num_quiet + 1
            wants_more = self._wanted > self.current
            if (wants_more and is_busy) or (not wants_more and self._num_quiet == _NUM_QUIET):
                self._want(self.current)
        elif self.current > 1 and self._lost_seconds >= _LOST_SECONDS:
            self._lost_seconds = 0.0
            if is_busy := self._is_busy(self.current):
                has_failed = self._clock() - self._raised_at < _LONGEST_PAUSE
                self._pause = self._longer_pause if has_failed else _SHORTEST_PAUSE
                self._want(max(count for count in self._step_seconds if count < self.current))
            else:
                self._pause = self._longer_pause  # long contexts or many sessions are slow, too
        elif self.current < self.most:
            more = min(count for count in self._step_seconds if count > self.current)
            is_busy = self._is_busy(more)
            self._num_quiet = 0 if is_busy else self._num_quiet + 1
            if self._num_quiet == _NUM_QUIET:
                self._want(more)
        else:
            return
        self._next_look = self._clock() + max(self._pause, _BUSY_PAUSE if is_busy else 0.0)

    @property
    def _longer_pause(self) -> float:
        return min(2 * self._pause, _LONGEST_PAUSE)

    def _want(self, count: int) -> None:
        self._wanted, self._wanted_since, self._num_quiet = count, self._clock(), 0
