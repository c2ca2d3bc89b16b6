"""Where draft tokens come from: the text itself, the speculation cache, and the draft.

The draft policy decides, once a step; what is decided is done here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from functools import partial

from orchestrator.decoding.draft import Draft
from orchestrator.decoding.interfaces import (
    Drafter,
    Lookahead,
    PipelinedRequest,
    Pipelining,
    RunningAhead,
    Verifier,
)
from orchestrator.decoding.lookup import look_up
from orchestrator.policy.draft_policy import Decision, DraftPolicy, StepContext
from orchestrator.step import NO_DRAFT, DraftSource, DraftState, DraftTokens, StepRecord, Wait
from outrider.protocol.messages import Predraft

# What the target decodes behind the end of a text is wasted.
MAX_RUN_AHEAD_TOKENS = 32


class Proposer:
    """Gets the draft tokens of one text, step by step.

    Args:
        looks_up: whether draft tokens may come from the text itself.
    """

    def __init__(
        self,
        drafter: Drafter | None,
        policy: DraftPolicy,
        num_predrafts: int | None = None,
        looks_up: bool = False,
    ) -> None:
        self.waits: list[Wait] = []
        """Of the current step."""
        self.hidden_prefill_ns = 0
        """Of the draft's prefill, if it ended in the current step: what nothing waited for."""
        self._draft = Draft(drafter, num_predrafts)
        self._policy = policy
        self._looks_up = looks_up
        self._decision: Decision | None = None

    @property
    def draft_state(self) -> DraftState:
        return self._draft.state

    @property
    def num_predrafted_tokens(self) -> int:
        return self._draft.num_predrafted_tokens

    async def propose(self, tokens: Sequence[int], room: int, verifier: Verifier) -> DraftTokens:
        """At most `room` draft tokens behind `tokens`."""
        self.waits, self.hidden_prefill_ns = [], 0
        pipelined = verifier.pipelined
        is_pipelined = pipelined is not None and pipelined.tokens == tokens
        is_first = self._decision is None
        decision = self._decide(tokens, is_pipelined, verifier.is_running_ahead)
        if is_first:
            if decision.draft_length or decision.keeps_up:
                self._draft.prefill(tokens, decision)
            return NO_DRAFT
        if pipelined is not None and is_pipelined:
            await self._draft.follow(tokens, pipelined.draft.token_ids, decision)
            return pipelined.draft
        draft = await self._propose(tokens, room, decision) if room else NO_DRAFT
        return dataclasses.replace(draft, replaces_stale=pipelined is not None)

    def _decide(
        self, tokens: Sequence[int], is_pipelined: bool, is_running_ahead: bool
    ) -> Decision:
        has_room = self._draft.room(tokens) > 0 or self._draft.state is DraftState.LOST
        state = self._draft.state if has_room else DraftState.ABSENT
        self._decision = self._policy.decide(StepContext(state, is_pipelined, is_running_ahead))
        return self._decision

    async def _propose(self, tokens: Sequence[int], room: int, decision: Decision) -> DraftTokens:
        """What is looked up, if that is enough, otherwise what the draft has."""
        draft = self._draft
        if draft.state is DraftState.PREFILLING and draft.has_prefilled:
            await self._finish_prefill()
        await draft.want(tokens, decision)
        is_wanted = decision.draft_length > 0
        cached = draft.cached(tokens) if is_wanted else None
        looked_up = self._look_up(tokens, room, decision, cached)
        if looked_up.token_ids:
            if draft.state in (DraftState.ACTIVE, DraftState.CATCHING_UP):
                await draft.follow(tokens, looked_up.token_ids, decision)
            return looked_up
        if not is_wanted:
            return NO_DRAFT
        if draft.state is DraftState.PREFILLING:
            if draft.is_late or not decision.miss_length:
                return NO_DRAFT
            await self._finish_prefill()
        room = min(room, draft.room(tokens))
        if room == 0:  # of its context, or it is lost
            return NO_DRAFT
        return await self._cached_or_drafted(tokens, room, decision)

    async def _cached_or_drafted(
        self, tokens: Sequence[int], room: int, decision: Decision
    ) -> DraftTokens:
        """The predraft for `tokens`; on a cache miss a proposal, where waiting for one pays."""
        draft, predrafted = self._draft, self._draft.predrafts
        cached, waited_ns = draft.cached(tokens), 0
        if cached is None and draft.is_under_way(tokens):
            began_ns = time.perf_counter_ns()
            cached = await draft.wait_for_cached(tokens, decision.cache_wait_ns)
            waited_ns = self._waited("draft_compute", began_ns).ns
        has_caught_up = draft.has_caught_up(is_hit=cached is not None)
        if cached is not None:
            token_ids = cached.draft_token_ids[: min(room, decision.predraft_length)]
            await draft.follow(tokens, token_ids, decision)
            hidden_ns = max(0, cached.forward_ns - waited_ns)
            return DraftTokens(token_ids, DraftSource.CACHED, forward_ns=hidden_ns)
        missed = DraftTokens(is_cache_miss=predrafted)
        num_tokens = min(room, decision.miss_length)
        if not has_caught_up or num_tokens == 0:
            await draft.follow(tokens, (), decision)
            return missed
        began_ns = time.perf_counter_ns()
        proposal = await draft.propose(tokens, num_tokens, decision)
        if proposal is None:
            self._waited("draft_network", began_ns)
            return NO_DRAFT
        self.waits.append(Wait("draft", began_ns, time.perf_counter_ns(), proposal.timings))
        if not proposal.draft_token_ids:
            return NO_DRAFT  # the draft was waited for, and has nothing to propose
        return dataclasses.replace(
            missed, token_ids=proposal.draft_token_ids, source=DraftSource.DRAFTED
        )

    def _look_up(
        self, tokens: Sequence[int], room: int, decision: Decision, cached: Predraft | None
    ) -> DraftTokens:
        if not self._looks_up or room == 0:
            return NO_DRAFT
        return look_up(tokens, room, decision, () if cached is None else cached.draft_token_ids)

    async def _finish_prefill(self) -> None:
        began_ns = time.perf_counter_ns()
        proposal = await self._draft.finish_prefill()
        wait = self._waited("prefill_draft", began_ns)
        if proposal is not None:
            self.hidden_prefill_ns = max(0, proposal.timings.total_ns - wait.ns)

    def _waited(self, stage: str, began_ns: int) -> Wait:
        self.waits.append(Wait(stage, began_ns, time.perf_counter_ns()))
        return self.waits[-1]

    def lookahead(self, tokens: Sequence[int], draft: DraftTokens, room: int) -> Lookahead | None:
        """How the target may get work before the result of this step is known."""
        decision = self._decision
        assert decision is not None
        if decision.runs_ahead and not draft.token_ids:
            return RunningAhead(min(room, MAX_RUN_AHEAD_TOKENS))
        room -= len(draft.token_ids) + 1
        if decision.pipelines and self._draft.is_predrafting and room > 0:
            return Pipelining(partial(self._next_request, tokens, draft.token_ids, room))
        return None

    async def _next_request(
        self, tokens: Sequence[int], draft: Sequence[int], room: int
    ) -> PipelinedRequest:
        """The next verification, as soon as its draft is as long as wanted, or the target would
        wait for it; for ever if there is no predraft for full acceptance."""
        decision = self._decision
        assert decision is not None
        length = min(decision.predraft_length, room)
        now = asyncio.get_running_loop().time
        latest = now() + decision.pipeline_wait_ns / 1e9
        while True:
            growth = self._draft.growth()
            predraft, seconds_left = self._draft.likeliest(tokens, draft), None
            if predraft is not None:
                request = self._request([*tokens, *predraft.assumed_token_ids], predraft, room)
                num_tokens, seconds_left = len(request.draft.token_ids), latest - now()
                is_complete = request.draft.source is DraftSource.LOOKUP or num_tokens == length
                if is_complete or seconds_left <= 0:
                    return request
            await asyncio.wait((growth,), timeout=seconds_left)

    def _request(self, tokens: list[int], predraft: Predraft, room: int) -> PipelinedRequest:
        """What would be proposed if `predraft` comes true: first what stands in the text."""
        assert self._decision is not None
        draft = self._look_up(tokens, room, self._decision, predraft)
        if not draft.token_ids:
            token_ids = predraft.draft_token_ids[: min(room, self._decision.predraft_length)]
            draft = DraftTokens(token_ids, DraftSource.CACHED, forward_ns=predraft.forward_ns)
        return PipelinedRequest(tokens, dataclasses.replace(draft, is_pipelined=True))

    def observe(self, step: StepRecord) -> None:
        """Lets the policy learn from a step."""
        self._policy.observe(step)

    def close(self) -> None:
        self._draft.close()
