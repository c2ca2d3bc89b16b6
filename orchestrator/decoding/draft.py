"""The draft of one text: its state, the requests to it, and what happens when it fails."""

import asyncio
import logging
from collections.abc import Callable, Sequence

from orchestrator.decoding.interfaces import Drafter
from orchestrator.policy.draft_policy import Decision
from orchestrator.step import DraftState
from outrider.errors import OutriderError, ServiceUnavailable
from outrider.protocol.messages import Predraft, PredraftPlan, Proposal

DEFAULT_NUM_PREDRAFTS = 4

# A draft that takes longer to answer is lost. Reading a long prompt may take a while.
LONGEST_WAIT_SECONDS = 10.0
LONGEST_PREFILL_SECONDS = 60.0

# Steps in which a draft that was idle reads the tokens that it missed, before the loop may wait
# for it.
STEPS_TO_CATCH_UP = 3

Reopen = Callable[[], Drafter | None]

log = logging.getLogger(__name__)


class _NoDrafter(Drafter):
    """Stands in for a drafter that is absent or lost."""

    max_context_length = num_predrafted_tokens = 0

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
    ) -> Proposal:
        raise ServiceUnavailable("there is no draft")


class Draft:
    """Owns the draft's state. If the draft is lost, the text continues without it.

    Args:
        drafter: None if there is no draft.
        num_predrafts: outcomes to predraft for; None: the draft chooses the number.
        reopen: called at each step after the drafter was lost; returns a new one, or None while
            none is available.
    """

    def __init__(
        self, drafter: Drafter | None, num_predrafts: int | None, reopen: Reopen = lambda: None
    ) -> None:
        self.state = DraftState.ABSENT if drafter is None else DraftState.IDLE
        self.prefill_ns = 0
        """The duration, at the draft service, of a prefill that was finished; 0: none was."""
        self.drafter = drafter or _NoDrafter()
        self._num_predrafts = num_predrafts
        self._reopen = reopen
        self._predrafts = False  # according to the last request
        self._prefill: asyncio.Task[Proposal | None] | None = None
        self._has_prefilled = False
        self._steps_behind = 0  # how many steps the text is ahead of the prefill
        self._steps_left = 0  # to catch up
        self._num_lost_tokens = 0  # that a draft had predrafted which is lost

    @property
    def num_predrafted_tokens(self) -> int:
        """Tokens predrafted in this text so far, for all outcomes."""
        return self._num_lost_tokens + self.drafter.num_predrafted_tokens

    @property
    def is_working(self) -> bool:
        """Whether it holds the text, or is catching up, so that `follow` and `propose` may be
        called."""
        return self.state in (DraftState.ACTIVE, DraftState.CATCHING_UP)

    @property
    def is_predrafting(self) -> bool:
        """Whether it predrafts for the current verification."""
        return self._predrafts and self.is_working

    def room(self, tokens: Sequence[int]) -> int:
        """How many more tokens than `tokens` fit into its context; 0 if there is no draft."""
        return max(0, self.drafter.max_context_length - len(tokens))

    def prefill(self, tokens: Sequence[int], decision: Decision, is_late: bool = False) -> None:
        """Lets the draft start reading the text in the background.

        Args:
            is_late: steps have already been taken without the draft.
        """
        if not self.room(tokens):
            return
        self.state = DraftState.PREFILLING
        self._steps_behind = STEPS_TO_CATCH_UP if is_late else 0
        self._prefill = asyncio.create_task(self._read(list(tokens), decision))

    async def _read(self, tokens: Sequence[int], decision: Decision) -> Proposal | None:
        await self.drafter.until_readable(tokens)
        return await self.propose(tokens, 0, decision, LONGEST_PREFILL_SECONDS)

    @property
    def is_late(self) -> bool:
        """Whether steps have been taken since the prefill began, so that the loop should not wait
        for it."""
        return self._steps_behind > 1

    async def begin_step(self) -> None:
        """Updates the state at the beginning of a step.

        Collects the result of a prefill that is done, ends the catching up, and reopens a lost
        draft that is available again.
        """
        if self.state is DraftState.PREFILLING:
            self._steps_behind += 1
            if self._prefill is not None and self._prefill.done():
                await self.finish_prefill()
        elif self.state is DraftState.CATCHING_UP:
            self._steps_left -= 1
            if self._steps_left == 0:
                self.state = DraftState.ACTIVE
        elif self.state is DraftState.LOST and (drafter := self._reopen()) is not None:
            self.drafter, self.state = drafter, DraftState.IDLE
            self._prefill, self._has_prefilled = None, False

    async def finish_prefill(self) -> None:
        """Waits for the end of the prefill; no other request may be made before."""
        assert self._prefill is not None
        prefill, self._prefill = self._prefill, None
        proposal = None
        try:
            async with asyncio.timeout(LONGEST_WAIT_SECONDS):
                proposal = await prefill
        except TimeoutError:
            self._lose(ServiceUnavailable("the draft: no answer in time"))
        self.prefill_ns = 0 if proposal is None else proposal.timings.total_ns
        self._has_prefilled = True
        if self.state is DraftState.PREFILLING:
            self.state = DraftState.ACTIVE
            if self.is_late:
                self._catch_up()

    def _catch_up(self) -> None:
        self.state, self._steps_left = DraftState.CATCHING_UP, STEPS_TO_CATCH_UP

    async def want(self, tokens: Sequence[int], decision: Decision) -> None:
        """Starts or stops the draft according to `decision.drafts`."""
        if self.state is DraftState.IDLE and decision.drafts:
            if self._has_prefilled:
                self._catch_up()
            else:
                self.prefill(tokens, decision, is_late=True)
        elif self.is_working and not decision.drafts:
            await self.follow(tokens, (), decision)

    async def wait_for_cached(self, tokens: Sequence[int], wait_ns: float) -> Predraft | None:
        """The predraft for the case that `tokens` are committed; None if there is none in time.

        Waits up to `wait_ns` for the first token of a predraft that has been started: otherwise
        a forward pass that is nearly done when the result arrives would be wasted.
        """
        now = asyncio.get_running_loop().time
        latest = now() + wait_ns / 1e9
        while self.drafter.is_under_way(tokens) and (seconds_left := latest - now()) > 0:
            await asyncio.wait((self.drafter.growth(),), timeout=seconds_left)
        return self.drafter.cached(tokens)

    async def follow(
        self, tokens: Sequence[int], draft: Sequence[int], decision: Decision, is_hit: bool = False
    ) -> None:
        """Tells the draft that `draft` is being verified after `tokens`.

        Does so only if it predrafts, or did so, which may delay the target where both share cores;
        or if it is catching up. Otherwise it reads these tokens with the next proposal.

        Args:
            is_hit: `draft` is a predraft, so the draft has caught up.
        """
        if self.state is DraftState.LOST:
            return
        fits = len(tokens) + len(draft) <= self.drafter.max_context_length
        if not (decision.drafts and fits):
            self.state = DraftState.IDLE
        elif is_hit:
            self.state = DraftState.ACTIVE
        is_told = self._predrafts or self._will_predraft(decision)
        if not fits or not (is_told or self.state is DraftState.CATCHING_UP):
            return
        try:
            await self.drafter.follow(tokens, draft, self._plan(decision))
        except OutriderError as error:
            self._lose(error)

    def _will_predraft(self, decision: Decision) -> bool:
        return decision.drafts and decision.predrafts and self._num_predrafts != 0

    def _plan(self, decision: Decision) -> PredraftPlan:
        """What to predraft from now on; nothing if no draft tokens are wanted."""
        self._predrafts = self._will_predraft(decision)
        if not self._predrafts:
            return PredraftPlan(acceptance_rate=decision.acceptance_rate)
        is_limit = self._num_predrafts is None
        num_predrafts = self._num_predrafts
        if num_predrafts is None:
            num_predrafts = DEFAULT_NUM_PREDRAFTS
        length = max(1, decision.predraft_length)
        return PredraftPlan(num_predrafts, length, is_limit, decision.acceptance_rate)

    async def propose(
        self,
        tokens: Sequence[int],
        num_tokens: int,
        decision: Decision,
        seconds: float | None = None,
    ) -> Proposal | None:
        """At most `num_tokens` draft tokens after `tokens`; None if the draft is lost.

        Args:
            seconds: the longest wait; default LONGEST_WAIT_SECONDS.
        """
        if self.state is DraftState.LOST:
            return None
        try:
            async with asyncio.timeout(seconds or LONGEST_WAIT_SECONDS):
                return await self.drafter.propose(tokens, num_tokens, self._plan(decision))
        except TimeoutError:
            self._lose(ServiceUnavailable("the draft: no answer in time"))
        except OutriderError as error:
            self._lose(error)
        return None

    def _lose(self, error: OutriderError) -> None:
        """Closes the session, so that the draft does no more work for this text."""
        log.warning("going on without the draft: %s", str(error).removeprefix("the draft: "))
        self._num_lost_tokens += self.drafter.num_predrafted_tokens
        self.drafter.close(error)
        self.drafter, self.state = _NoDrafter(), DraftState.LOST

    def close(self) -> None:
        """Cancels a running prefill. The session is closed by its owner."""
        if self._prefill is not None:
            self._prefill.cancel()
