"""Memory of slots that is given back between passes."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from outrider.engine.chunk import Chunk

GiveBack = Callable[[int, int], Iterator[None]]
"""`SlotCache.give_back`."""


class MemoryReturns:
    """What is to be given back. Bit by bit, while the engine has nothing else to do; or at once.

    To be used by the engine's thread only, so that no pass uses what is given back.
    """

    def __init__(self, give_back: GiveBack) -> None:
        self._give_back = give_back
        self._due: dict[int, Iterator[None]] = {}

    def __bool__(self) -> bool:
        return bool(self._due)

    def add(self, surplus: Mapping[int, int]) -> None:
        """Memory of these slots is due, behind so many tokens of each."""
        for slot, length in surplus.items():
            self._due[slot] = self._give_back(slot, length)

    def go_on(self) -> None:
        """Gives some of it back."""
        slot, steps = next(iter(self._due.items()))
        if next(steps, self) is self:
            del self._due[slot]

    def finish(self, chunks: Sequence[Chunk] | None = None) -> None:
        """Gives back what is due in the slots of these chunks, or all of it."""
        for slot in list(self._due) if chunks is None else [chunk.slot for chunk in chunks]:
            deque(self._due.pop(slot, ()), maxlen=0)
