"""Where draft tokens come from: the text itself, what is predrafted, and the drafter."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from functools import partial

from orchestrator.decoding.drafted import NONE_DRAFTED, Drafted
from orchestrator.decoding.fail_safe_drafter import FailSafeDrafter
from orchestrator.decoding.interfaces import Ahead, Drafter, Foresight
from orchestrator.decoding.lookup import NOTHING, SHORTEST_INTERRUPTION, LookedUp, look_up
from orchestrator.decoding.waiting import foresee, predrafted_soon
from orchestrator.policy.draft_length import LengthPolicy
from orchestrator.policy.round_trip import Distance
from orchestrator.reporting.latency import CriticalPath
from outrider.protocol.messages import Predraft, PredraftPlan, VerifyResult

DEFAULT_NUM_PREDRAFTS = 4

# A text that has ended is found out by then; what the target says behind its end is wasted.
MOST_MORE_TOKENS = 32

# A draft that has rested reads what it has missed. Later than this it is late for other reasons.
STEPS_TO_CATCH_UP = 3


class Proposer:
    """Gets draft tokens: from the text itself, and from a drafter for as long as it works."""

    def __init__(
        self,
        drafter: Drafter | None,
        lengths: LengthPolicy,
        num_predrafts: int | None,
        looks_up: bool,
        path: CriticalPath,
        distance: Distance | None = None,
    ) -> None:
        self._draft = FailSafeDrafter(drafter)
        self._lengths = lengths
        self._num_predrafts = num_predrafts
        self._looks_up = looks_up
        self._path = path
        self._distance = distance
        self._is_predrafting = False
        self._draft_rests = True
        self._catching_up = 0  # steps that it may still take to read what it missed

    def prefill(self, prompt: Sequence[int]) -> None:
        """Lets the draft read the prompt while the target does, unless it is at rest."""
        length = self._next_length(prompt)
        self._draft_rests = length == 0
        if self._draft.room(prompt) and (length or not self._lengths.is_at_rest):
            self._read(prompt, length)

    def _next_length(self, tokens: Sequence[int]) -> int:
        """The draft length of the next step; 0 where no draft is left that could be asked."""
        return self._lengths.next_length() if self._draft.room(tokens) else 0

    def _read(self, tokens: Sequence[int], length: int) -> None:
        if self._draft.is_to_begin:
            self._draft.read(tokens, self._begin_predrafting(length))

    async def propose(
        self, tokens: Sequence[int], room: int, ahead: Ahead | None = None, goes_on: bool = False
    ) -> Drafted:
        """At most `room` draft tokens.

        If `ahead` was sent for just these tokens, they are its draft tokens. A target that
        goes on alone is interrupted for many tokens only, and not where sessions share passes.
        """
        if ahead is not None and ahead.tokens == tokens:
            return await self._take(ahead)
        if goes_on and self._lengths.shares_passes:
            drafted = NONE_DRAFTED  # who interrupts it waits for two passes that others share
        else:
            least = SHORTEST_INTERRUPTION if goes_on else 1
            drafted = await self._propose(tokens, room, least)
        # Beside a draft that reads the prompt, steps take what no others do.
        catches_up = drafted.catches_up or self._draft.is_reading
        is_stale = ahead is not None
        return dataclasses.replace(drafted, catches_up=catches_up, replaces_stale=is_stale)

    async def _propose(self, tokens: Sequence[int], room: int, least: int) -> Drafted:
        """What is looked up, if there are `least` tokens of that, else what the draft has."""
        length = self._next_length(tokens)
        if length == 0:
            await self._rest(tokens)
        elif self._draft_rests:
            self._catching_up = STEPS_TO_CATCH_UP
            self._read(tokens, length)
        self._draft_rests = length == 0
        predrafted = self._draft.predrafted(tokens) if length else None
        looked_up = self._look_up(tokens, room, least, predrafted)
        if looked_up.token_ids:
            if length and self._draft.has_read:
                await self._follow(tokens, looked_up.token_ids, length)
            return Drafted(looked_up.token_ids, looked_up)
        if length == 0:
            return NONE_DRAFTED
        waits_for = length if self._num_predrafts == 0 else self._lengths.missed_length(length)
        if self._draft.is_reading and (waits_for == 0 or self._catching_up):
            return NONE_DRAFTED
        await self._finish_prefill()
        return await self._predrafted_or_asked(tokens, room, length, waits_for)

    def num_run_ahead_tokens(self, room: int) -> int:
        """By how many tokens the target may go on alone behind the next result.

        It may where the draft rests, and messages between two passes would hold up others
        that share them, or take long. A near target that nobody shares waits for what might
        be looked up in the text.
        """
        is_worth = self._draft_rests and (self._lengths.shares_passes or self._is_far)
        return min(room, MOST_MORE_TOKENS) if is_worth else 0

    @property
    def _is_far(self) -> bool:
        return self._distance is not None and self._distance.is_far

    def foresight(self, tokens: Sequence[int], drafted: Drafted, room: int) -> Foresight | None:
        """Finds what to send ahead while that is verified; None where nothing is worth it."""
        drafter, distance = self._draft.drafter, self._distance
        is_predrafted = self._is_predrafting and self._draft.has_read
        if drafter is None or distance is None or not (is_predrafted and distance.is_far):
            return None
        draft = drafted.token_ids
        room -= len(draft) + 1
        length = min(self._lengths.predrafted_length(), room)
        if length < 1 or self._draft_rests:
            return None
        latest = asyncio.get_running_loop().time()
        latest += distance.patience_ns(drafted.is_pipelined) / 1e9
        make = partial(self._ahead, tokens, length, room)
        return partial(foresee, drafter, tokens, draft, length, latest, make)

    def _ahead(self, tokens: Sequence[int], length: int, room: int, predrafted: Predraft) -> Ahead:
        """What would be proposed if `predrafted` comes true: first what stands in the text."""
        assumed = [*tokens, *predrafted.assumed_token_ids]
        if (looked_up := self._look_up(assumed, room, 1, predrafted)).token_ids:
            return Ahead(assumed, looked_up.token_ids, looked_up)
        return Ahead(assumed, predrafted.draft_token_ids[:length], NOTHING, predrafted.forward_ns)

    async def _take(self, ahead: Ahead) -> Drafted:
        """What is being verified already."""
        is_cache_hit = not ahead.looked_up.token_ids
        if is_cache_hit:
            self._path.hide("draft_compute", ahead.forward_ns)
        length = self._next_length(ahead.tokens)
        self._draft_rests = length == 0
        await self._follow(ahead.tokens, ahead.draft_token_ids, length)
        return Drafted(
            ahead.draft_token_ids, ahead.looked_up, is_cache_hit=is_cache_hit, is_pipelined=True
        )

    def observe(self, drafted: Drafted, result: VerifyResult, waited_ns: int) -> None:
        """Learns from the result on what was proposed last, and what waiting for it took."""
        if self._distance is not None and not result.is_run_ahead:
            self._distance.observe(waited_ns, result.timings.total_ns, drafted.is_pipelined)
        self._lengths.observe(drafted.cost(result, waited_ns, self._draft_rests))

    def _look_up(
        self, tokens: Sequence[int], room: int, least: int, predrafted: Predraft | None
    ) -> LookedUp:
        if not self._looks_up or room == 0:
            return NOTHING
        draft = () if predrafted is None else predrafted.draft_token_ids
        return look_up(tokens, room, self._lengths, least, draft)

    async def _predrafted_or_asked(
        self, tokens: Sequence[int], room: int, length: int, waits_for: int
    ) -> Drafted:
        """What is predrafted for `tokens`, else what is drafted after them; `waits_for` 0: not."""
        drafter = self._draft.drafter
        room = min(room, self._draft.room(tokens))
        if drafter is None or room <= 0:
            return NONE_DRAFTED
        self._path.spend("orchestrator")
        predrafted, awaited_ns = drafter.predrafted(tokens), 0
        if predrafted is None and drafter.is_coming(tokens):
            predrafted = await predrafted_soon(drafter, tokens, self._lengths.patience_ns())
            awaited_ns = self._path.spend("draft_compute")
        if predrafted is not None:
            self._catching_up = 0
            draft = predrafted.draft_token_ids[: min(room, self._lengths.predrafted_length())]
            self._path.hide("draft_compute", predrafted.forward_ns - awaited_ns)
            await self._follow(tokens, draft, length)
            return Drafted(draft, is_cache_hit=True, awaited_ns=awaited_ns)
        catches_up = self._catching_up > 0  # it reads while the target works
        if catches_up:
            self._catching_up -= 1
        missed = Drafted(
            is_cache_miss=self._is_predrafting, catches_up=catches_up, awaited_ns=awaited_ns
        )
        if catches_up or waits_for == 0:
            await self._follow(tokens, (), length)
            return missed
        return await self._ask(tokens, min(room, waits_for), length, missed)

    async def _ask(
        self, tokens: Sequence[int], num_tokens: int, length: int, missed: Drafted
    ) -> Drafted:
        """A proposal of at most so many tokens, behind which more is predrafted."""
        proposal = await self._draft.propose(tokens, num_tokens, self._begin_predrafting(length))
        if proposal is None:
            self._path.spend("draft_network")
            return NONE_DRAFTED
        waited_ns = self._path.spend_waiting("draft", proposal.timings)
        if not proposal.draft_token_ids:
            return Drafted(waited_ns=waited_ns)  # it was waited for, and has nothing to say
        return dataclasses.replace(missed, token_ids=proposal.draft_token_ids, waited_ns=waited_ns)

    async def _rest(self, tokens: Sequence[int]) -> None:
        """Ends predrafts where the drafter is not needed: they would share its cores."""
        if self._is_predrafting and not self._draft.is_reading:
            await self._finish_prefill()
            await self._follow(tokens, (), 0)

    async def _follow(self, tokens: Sequence[int], draft: Sequence[int], length: int) -> None:
        await self._draft.follow(tokens, draft, self._begin_predrafting(length))

    def _begin_predrafting(self, length: int) -> PredraftPlan:
        """What the draft is told to predraft from now on; nothing for a length of 0."""
        is_limit = self._num_predrafts is None
        num_predrafts = (
            DEFAULT_NUM_PREDRAFTS if self._num_predrafts is None else self._num_predrafts
        )
        self._is_predrafting = length > 0 and num_predrafts > 0
        num_tokens = self._lengths.predrafted_length() if length else 0
        rate = self._lengths.acceptance_rate
        return PredraftPlan(num_predrafts if length else 0, num_tokens, is_limit, rate)

    async def _finish_prefill(self) -> None:
        if self._draft.has_read:
            return
        self._path.spend("orchestrator")
        proposal = await self._draft.finish_reading()
        waited_ns = self._path.spend("prefill_draft")
        if proposal is not None:
            self._path.hide("prefill_draft", proposal.timings.total_ns - waited_ns)

    def close(self) -> None:
        self._draft.close()
