"""The draft of one text: its state, what it is told, and that it may be lost at any time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence

from orchestrator.decoding.interfaces import Drafter
from orchestrator.policy.draft_policy import Decision
from orchestrator.step import DraftState
from outrider.errors import OutriderError, ServiceUnavailable
from outrider.protocol.messages import Predraft, PredraftPlan, Proposal

DEFAULT_NUM_PREDRAFTS = 4

# A draft that has not answered for so long is lost.
LONGEST_WAIT_SECONDS = 10.0

# A draft that was idle reads what it has missed. If that takes more steps, it is just slow.
STEPS_TO_CATCH_UP = 3

log = logging.getLogger(__name__)


class Draft:
    """Owns the draft's state. Losing the draft costs speed, not text.

    Args:
        drafter: None if there is none.
        num_predrafts: outcomes to predraft for; None leaves the number to the draft.
    """

    def __init__(self, drafter: Drafter | None, num_predrafts: int | None) -> None:
        self.state = DraftState.ABSENT if drafter is None else DraftState.IDLE
        self.predrafts = False
        """Whether it was last told to predraft."""
        self._drafter = drafter
        self._num_predrafts = num_predrafts
        self._has_read = False  # the text up to some point, or is reading it
        self._prefill: asyncio.Task[Proposal | None] | None = None
        self.is_late = False
        """Whether the text had gone on before its prefill began."""
        self._steps_left = 0  # to catch up

    @property
    def is_predrafting(self) -> bool:
        """Whether predrafts for the verification under way are there or to come."""
        return self.predrafts and self.state in (DraftState.ACTIVE, DraftState.CATCHING_UP)

    @property
    def num_predrafted_tokens(self) -> int:
        return 0 if self._drafter is None else self._drafter.num_predrafted_tokens

    def room(self, tokens: Sequence[int]) -> int:
        """How many tokens its context has left behind these; 0 if there is no draft."""
        if self._drafter is None:
            return 0
        return max(0, self._drafter.max_context_length - len(tokens))

    def prefill(self, tokens: Sequence[int], decision: Decision, is_late: bool = False) -> None:
        """Lets it read the text while others go on."""
        self._has_read, self.is_late = True, is_late
        self.state = DraftState.PREFILLING
        asked = self._ask(list(tokens), 0, self._plan(decision))
        self._prefill = asyncio.create_task(asked)

    @property
    def has_prefilled(self) -> bool:
        """Whether `finish_prefill` would not have to wait."""
        return self._prefill is None or self._prefill.done()

    async def finish_prefill(self) -> Proposal | None:
        """Waits until the text is read: until then nothing else may be asked."""
        assert self._prefill is not None
        proposal = await self._answer(self._prefill)
        self._prefill = None
        if self.state is DraftState.PREFILLING:
            self._become(DraftState.CATCHING_UP if self.is_late else DraftState.ACTIVE)
        return proposal

    async def want(self, tokens: Sequence[int], decision: Decision) -> None:
        """Wakes it or makes it idle, as decided."""
        is_wanted = decision.draft_length > 0
        if self.state is DraftState.IDLE and is_wanted:
            if self._has_read:
                self._become(DraftState.CATCHING_UP)
            else:
                self.prefill(tokens, decision, is_late=True)
        elif self.state in (DraftState.ACTIVE, DraftState.CATCHING_UP) and not is_wanted:
            if self.predrafts:  # which may share the target's cores
                await self.follow(tokens, (), decision)
            else:
                self.state = DraftState.IDLE

    def _become(self, state: DraftState) -> None:
        self.state = state
        self._steps_left = STEPS_TO_CATCH_UP

    def has_caught_up(self, is_hit: bool) -> bool:
        """Whether it may be waited for: it has a predraft, or has had time to read."""
        if self.state is DraftState.CATCHING_UP:
            if is_hit or self._steps_left == 0:
                self.state = DraftState.ACTIVE
            self._steps_left -= 1
        return self.state is not DraftState.CATCHING_UP

    def cached(self, tokens: Sequence[int]) -> Predraft | None:
        """The predraft for the case that `tokens` are committed."""
        return None if self._drafter is None else self._drafter.cached(tokens)

    def is_under_way(self, tokens: Sequence[int]) -> bool:
        return self._drafter is not None and self._drafter.is_under_way(tokens)

    async def wait_for_cached(self, tokens: Sequence[int], wait_ns: float) -> Predraft | None:
        """The predraft for that case, if it is there in time.

        A result that comes in the middle of a draft step would otherwise waste the step.
        """
        assert self._drafter is not None
        now = asyncio.get_running_loop().time
        latest = now() + wait_ns / 1e9
        while self.is_under_way(tokens) and (seconds_left := latest - now()) > 0:
            await asyncio.wait((self._drafter.growth(),), timeout=seconds_left)
        return self.cached(tokens)

    def growth(self) -> asyncio.Future[None]:
        """Done when a predraft has grown; never, if none will."""
        if self._drafter is None:
            return asyncio.get_running_loop().create_future()
        return self._drafter.growth()

    def likeliest(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        """The predraft for the case that all of `draft` are accepted behind `tokens`."""
        return None if self._drafter is None else self._drafter.likeliest(tokens, draft)

    async def propose(
        self, tokens: Sequence[int], num_tokens: int, decision: Decision
    ) -> Proposal | None:
        """At most so many draft tokens; None if it is lost."""
        return await self._answer(self._ask(tokens, num_tokens, self._plan(decision)))

    async def follow(self, tokens: Sequence[int], draft: Sequence[int], decision: Decision) -> None:
        """Tells it that `draft` is being verified behind `tokens`."""
        plan = self._plan(decision)
        if self._drafter is None:
            return
        if len(tokens) + len(draft) > self._drafter.max_context_length:
            self.state = DraftState.IDLE
            return
        try:
            await self._drafter.follow(tokens, draft, plan)
        except OutriderError as error:
            self._lose(error)
        else:
            if not decision.draft_length:
                self.state = DraftState.IDLE

    def _plan(self, decision: Decision) -> PredraftPlan:
        """What to predraft from now on; nothing if no draft tokens are wanted."""
        if not decision.draft_length:
            self.predrafts = False
            return PredraftPlan(acceptance_rate=decision.acceptance_rate)
        is_limit = self._num_predrafts is None
        num_predrafts = (
            DEFAULT_NUM_PREDRAFTS if self._num_predrafts is None else self._num_predrafts
        )
        self.predrafts = num_predrafts > 0
        return PredraftPlan(
            num_predrafts, decision.predraft_length, is_limit, decision.acceptance_rate
        )

    async def _ask(
        self, tokens: Sequence[int], num_tokens: int, plan: PredraftPlan
    ) -> Proposal | None:
        if self._drafter is None:
            return None
        try:
            return await self._drafter.propose(tokens, num_tokens, plan)
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
        """Ends its session, too: an overloaded draft need not work for a text that it has lost."""
        log.warning("going on without the draft: %s", error)
        if self._drafter is not None:
            self._drafter.close(error)
        self._drafter, self.state = None, DraftState.LOST

    def close(self) -> None:
        if self._prefill is not None:
            self._prefill.cancel()
