"""Obtains draft tokens: from the text itself, the speculation cache, or the draft.

The draft policy decides in each step; `Proposer` carries out the decision.
"""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from functools import partial

from orchestrator.decoding.draft import Draft, Reopen
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
from outrider.protocol.messages import Predraft, Timings
from outrider.protocol.stages import Stage

# Bounds the work that is wasted if the text ends during run-ahead.
MAX_RUN_AHEAD_TOKENS = 32


class Proposer:
    """Carries out the draft policy's decision for each step of one text.

    Args:
        num_predrafts: outcomes to predraft for; None: the draft chooses the number.
        looks_up: whether to use prompt lookup.
        reopen: returns a drafter in place of a lost one, or None while none is available.
    """

    def __init__(
        self,
        drafter: Drafter | None,
        policy: DraftPolicy,
        num_predrafts: int | None = None,
        looks_up: bool = False,
        reopen: Reopen = lambda: None,
    ) -> None:
        self.waits: list[Wait] = []
        """What the current step has waited for so far."""
        self.hidden_prefill_ns = 0
        """If the draft's prefill ended in the current step: its time minus the loop's wait."""
        self.draft = Draft(drafter, num_predrafts, reopen)
        self._policy = policy
        self._looks_up = looks_up
        self._has_begun = False

    async def propose(
        self, tokens: Sequence[int], room: int, verifier: Verifier
    ) -> tuple[DraftTokens, Lookahead | None]:
        """At most `room` draft tokens after `tokens`, and the lookahead for the verifier."""
        draft, self.waits = self.draft, []
        await draft.begin_step()
        pipelined = verifier.pipelined
        is_pipelined = pipelined is not None and pipelined.tokens == tokens
        state = draft.state if draft.room(tokens) else DraftState.ABSENT
        context = StepContext(state, is_pipelined, verifier.is_running_ahead)
        decision = self._policy.decide(context)
        if not self._has_begun:
            self._has_begun, found = True, NO_DRAFT
            if decision.drafts or decision.keeps_up:
                draft.prefill(tokens, decision)
        elif pipelined is not None and is_pipelined:
            found = pipelined.draft
            is_hit = found.source is DraftSource.CACHED
            await draft.follow(tokens, found.token_ids, decision, is_hit)
        else:
            found = await self._propose(tokens, room, decision) if room else NO_DRAFT
            found = dataclasses.replace(found, replaces_stale=pipelined is not None)
        prefill_wait_ns = sum(wait.ns for wait in self.waits if wait.stage is Stage.PREFILL_DRAFT)
        self.hidden_prefill_ns = max(0, draft.prefill_ns - prefill_wait_ns)
        draft.prefill_ns = 0
        return found, self._lookahead(tokens, found, room, decision)

    async def _propose(self, tokens: Sequence[int], room: int, decision: Decision) -> DraftTokens:
        """Draft tokens from prompt lookup if it finds any, otherwise from the draft."""
        draft = self.draft
        await draft.want(tokens, decision)
        cached = draft.drafter.cached(tokens) if decision.drafts else None
        looked_up = self._look_up(tokens, room, decision, cached)
        if looked_up.token_ids:
            if draft.is_working:
                await draft.follow(tokens, looked_up.token_ids, decision)
            return looked_up
        if draft.state is DraftState.PREFILLING and not draft.is_late and decision.miss_length:
            began_ns = time.perf_counter_ns()
            await draft.finish_prefill()
            self._waited(Stage.PREFILL_DRAFT, began_ns)
        room = min(room, draft.room(tokens))
        if room == 0 or not draft.is_working:
            return NO_DRAFT
        return await self._cached_or_drafted(tokens, room, decision)

    async def _cached_or_drafted(
        self, tokens: Sequence[int], room: int, decision: Decision
    ) -> DraftTokens:
        """The predraft for `tokens`; on a cache miss a proposal, if the policy waits for one."""
        draft, is_predrafting = self.draft, self.draft.is_predrafting
        cached, waited_ns = draft.drafter.cached(tokens), 0
        if cached is None and draft.drafter.is_under_way(tokens):
            began_ns = time.perf_counter_ns()
            cached = await draft.wait_for_cached(tokens, decision.cache_wait_ns)
            waited_ns = self._waited(Stage.DRAFT_COMPUTE, began_ns).ns
        if cached is not None:
            token_ids = cached.draft_token_ids[: min(room, decision.predraft_length)]
            await draft.follow(tokens, token_ids, decision, is_hit=True)
            hidden_ns = max(0, cached.forward_ns - waited_ns)
            return DraftTokens(token_ids, DraftSource.CACHED, hidden_draft_ns=hidden_ns)
        missed = DraftTokens(is_cache_miss=is_predrafting)
        num_tokens = min(room, decision.miss_length)
        if draft.state is DraftState.CATCHING_UP or num_tokens == 0:
            await draft.follow(tokens, (), decision)
            return missed
        began_ns = time.perf_counter_ns()
        proposal = await draft.propose(tokens, num_tokens, decision)
        if proposal is None:
            self._waited(Stage.DRAFT_NETWORK, began_ns)
            return NO_DRAFT
        self._waited(Stage.DRAFT_COMPUTE, began_ns, proposal.timings)
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

    def _waited(self, stage: Stage, began_ns: int, timings: Timings | None = None) -> Wait:
        self.waits.append(Wait(stage, began_ns, time.perf_counter_ns(), timings))
        return self.waits[-1]

    def _lookahead(
        self, tokens: Sequence[int], draft: DraftTokens, room: int, decision: Decision
    ) -> Lookahead | None:
        """What the target may do before the loop has seen the result of this step."""
        if decision.runs_ahead and not draft.token_ids:
            return RunningAhead(min(room, MAX_RUN_AHEAD_TOKENS))
        room -= len(draft.token_ids) + 1  # for draft tokens of the next step
        if decision.pipelines and self.draft.is_predrafting and room > 0:
            return Pipelining(partial(self._next_request, tokens, draft.token_ids, room, decision))
        return None

    async def _next_request(
        self, tokens: Sequence[int], draft: Sequence[int], room: int, decision: Decision
    ) -> PipelinedRequest:
        """The request that verifies the predraft for full acceptance.

        Returns once the predraft has the wanted length, or once the target would be idle without
        the request; never without a predraft.
        """
        length = min(decision.predraft_length, room)
        now = asyncio.get_running_loop().time
        latest = now() + decision.pipeline_wait_ns / 1e9
        while True:
            growth = self.draft.drafter.growth()
            predraft = self.draft.drafter.after_full_acceptance(tokens, draft)
            seconds_left = None
            if predraft is not None:
                request = self._request(tokens, predraft, room, decision)
                num_tokens, seconds_left = len(request.draft.token_ids), latest - now()
                is_complete = request.draft.source is DraftSource.LOOKUP or num_tokens == length
                if is_complete or seconds_left <= 0:
                    return request
            await asyncio.wait((growth,), timeout=seconds_left)

    def _request(
        self, tokens: Sequence[int], predraft: Predraft, room: int, decision: Decision
    ) -> PipelinedRequest:
        """What would be proposed if the outcome of `predraft` occurs: prompt lookup first."""
        assumed = [*tokens, *predraft.assumed_token_ids]
        draft = self._look_up(assumed, room, decision, predraft)
        if not draft.token_ids:
            token_ids = predraft.draft_token_ids[: min(room, decision.predraft_length)]
            draft = DraftTokens(token_ids, DraftSource.CACHED, hidden_draft_ns=predraft.forward_ns)
        return PipelinedRequest(assumed, dataclasses.replace(draft, is_pipelined=True))

    def observe(self, step: StepRecord) -> None:
        """Passes a step to the policy, which learns from it."""
        self._policy.observe(step)

    def close(self) -> None:
        self.draft.close()
