"""Sessions get slots here, and wait for them."""

import asyncio
import threading
from concurrent.futures import Future

from outrider.engine.scheduling.slots import Slots


class Admission:
    """Gives slots to sessions, from any thread.

    A session reserves the longest `length` that its text may have, in tokens.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._changed = threading.Condition()

    @property
    def num_free_slots(self) -> int:
        return self._slots.num_free

    @property
    def num_waiting(self) -> int:
        """Sessions that wait for a slot."""
        with self._changed:
            return self._slots.num_waiting

    @property
    def num_reserved_tokens(self) -> int:
        """Tokens that sessions may hold, in all of their slots."""
        with self._changed:
            return self._slots.num_reserved

    @property
    def num_held_tokens(self) -> int:
        """Tokens whose keys and values slots hold, those of ended sessions included."""
        return self._slots.num_held

    def acquire(self, length: int = 0) -> int:
        """Takes a slot for up to `length` tokens. Raises NoFreeSlot."""
        return self.acquire_all(1, length)[0]

    def acquire_all(self, count: int, length: int = 0) -> list[int]:
        """Takes `count` slots for up to `length` tokens each, or none. Raises NoFreeSlot."""
        with self._changed:
            return self._slots.take(count, length)

    def request_slot(self, max_waiting: int, length: int = 0) -> Future[int]:
        """A slot as soon as there is one. Raises NoFreeSlot if `max_waiting` requests wait."""
        with self._changed:
            return self._slots.request(max_waiting, length)

    async def acquire_in_order(self, max_waiting: int, length: int = 0) -> int:
        """Takes a slot when there is one. Raises NoFreeSlot if `max_waiting` requests wait."""
        future = self.request_slot(max_waiting, length)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.cancelled():  # the slot came at the same moment
                self.release(future.result())
            with self._changed:  # those behind it may need less room
                self._slots.serve_waiting()
            raise

    def release(self, slot: int, is_copy: bool = False) -> None:
        """Gives a slot back. A copy of another one is not kept."""
        raise NotImplementedError
