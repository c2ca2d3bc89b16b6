"""A drafter that may be lost at any time, and costs speed then, not text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence

from orchestrator.decoding.interfaces import Drafter
from outrider.errors import OutriderError, ServiceUnavailable
from outrider.protocol.messages import Predraft, PredraftPlan, Proposal

# A draft that is waited for longer than this is taken for lost.
LONGEST_WAIT_SECONDS = 10.0

log = logging.getLogger(__name__)


class FailSafeDrafter:
    """A drafter for as long as it works: once it is lost, nothing is asked of it any more."""

    def __init__(self, drafter: Drafter | None) -> None:
        self.drafter = drafter
        """None if there is none, or it is lost."""
        self._has_begun = False  # to read the text at all
        self._reading: asyncio.Task[Proposal | None] | None = None

    @property
    def is_to_begin(self) -> bool:
        """Whether it has not even begun to read the text."""
        return self.drafter is not None and not self._has_begun

    def read(self, tokens: Sequence[int], predraft_plan: PredraftPlan) -> None:
        """Lets it begin with the text, once, while others go on."""
        self._has_begun = True
        self._reading = asyncio.create_task(self._ask(list(tokens), 0, predraft_plan))

    @property
    def is_reading(self) -> bool:
        return self._reading is not None and not self._reading.done()

    @property
    def has_read(self) -> bool:
        """Whether no reading is left to be finished, not even by `finish_reading`."""
        return self._reading is None

    async def finish_reading(self) -> Proposal | None:
        """Waits until the text is read; whoever has begun must, before anything else is asked."""
        assert self._reading is not None
        proposal = await self._answer(self._reading)
        self._reading = None
        return proposal

    def room(self, tokens: Sequence[int]) -> int:
        """How many tokens its context has left behind these; none if it is lost."""
        if self.drafter is None:
            return 0
        return max(0, self.drafter.max_context_length - len(tokens))

    def predrafted(self, tokens: Sequence[int]) -> Predraft | None:
        return None if self.drafter is None else self.drafter.predrafted(tokens)

    async def propose(
        self, tokens: Sequence[int], num_tokens: int, predraft_plan: PredraftPlan
    ) -> Proposal | None:
        """None if it is lost."""
        return await self._answer(self._ask(tokens, num_tokens, predraft_plan))

    async def follow(
        self, tokens: Sequence[int], draft: Sequence[int], predraft_plan: PredraftPlan
    ) -> None:
        """Lets it predraft behind a draft that it was not asked for."""
        if self.drafter is None or len(tokens) + len(draft) > self.drafter.max_context_length:
            return
        try:
            await self.drafter.follow(tokens, draft, predraft_plan)
        except OutriderError as error:
            self._lose(error)

    async def _ask(
        self, tokens: Sequence[int], num_tokens: int, predraft_plan: PredraftPlan
    ) -> Proposal | None:
        if self.drafter is None:
            return None
        try:
            return await self.drafter.propose(tokens, num_tokens, predraft_plan)
        except OutriderError as error:
            self._lose(error)
            return None

    async def _answer(self, asked: Awaitable[Proposal | None]) -> Proposal | None:
        """A draft that lives and never answers is as good as lost."""
        try:
            async with asyncio.timeout(LONGEST_WAIT_SECONDS):
                return await asked
        except TimeoutError:
            self._lose(ServiceUnavailable("the draft does not answer"))
            return None

    def _lose(self, error: OutriderError) -> None:
        """Ends its session, too: one that is overloaded need not work for a text it has lost."""
        log.warning("going on without the draft: %s", error)
        if self.drafter is not None:
            self.drafter.close(error)
        self.drafter = None

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
