"""Collects predrafts."""

import asyncio

from outrider.protocol.messages import Predraft


class Table:
    """Collects what a session predrafts."""

    def __init__(self) -> None:
        self.predrafted: dict[tuple[int, ...], Predraft] = {}
        self._changed = asyncio.Event()

    def add(self, grown: list[Predraft]) -> None:
        self.predrafted |= {one.assumed_token_ids: one for one in grown}
        self._changed.set()

    async def full(self, num_predrafts: int, num_tokens: int) -> dict[tuple[int, ...], Predraft]:
        """The table when so many predrafts have all their tokens."""
        async with asyncio.timeout(30):
            while num_predrafts > sum(
                len(one.draft_token_ids) == num_tokens for one in self.predrafted.values()
            ):
                self._changed.clear()
                await self._changed.wait()
        return self.predrafted
