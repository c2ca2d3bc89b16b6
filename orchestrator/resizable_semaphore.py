"""A semaphore whose size may change while it is in use."""

import asyncio
from collections import deque


class ResizableSemaphore:
    """A semaphore with at most `size` holders, and waiters in order of arrival."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._num_held = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def locked(self) -> bool:
        """Whether `acquire` would wait now."""
        return self._num_held >= self._size or any(not place.done() for place in self._waiting)

    async def acquire(self) -> None:
        """Acquires the semaphore; waits while it is locked."""
        if not self.locked():
            self._num_held += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was handed over at the same moment
                self.release()
            raise
        finally:
            self._waiting.remove(place)

    def release(self) -> None:
        self._num_held -= 1
        self._hand_over()

    def resize(self, size: int) -> None:
        """Changes the size. If it shrinks, surplus holders keep it until they release it."""
        self._size = size
        self._hand_over()

    def _hand_over(self) -> None:
        for place in self._waiting:
            if self._num_held >= self._size:
                return
            if not place.done():
                place.set_result(None)
                self._num_held += 1
