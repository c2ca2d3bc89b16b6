"""A draft and a target without models: the loop's partners in unit tests."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from orchestrator.decoding.interfaces import (
    Lookahead,
    PipelinedRequest,
    Pipelining,
    RunningAhead,
)
from outrider.errors import OutriderError, ServiceUnavailable
from outrider.protocol.messages import Predraft, PredraftPlan, Proposal, Timings, VerifyResult
from outrider.sampling.acceptance import accept_matching

NextToken = Callable[[Sequence[int]], int]
"""A model: the token that follows a sequence."""

TIMINGS = Timings(queue_ns=1, forward_ns=2, sample_ns=3, total_ns=10)


class FakeVerifier:
    """Verifies by a function, and fails from call `fails_at` on.

    It takes its time where it may pipeline: until the next request is worth sending, if any is.
    """

    def __init__(self, next_token: NextToken, fails_at: int | None = None) -> None:
        self._next_token = next_token
        self._fails_at = fails_at
        self.num_requests = 0
        self.pipelined: PipelinedRequest | None = None
        self.calls: list[tuple[list[int], tuple[int, ...]]] = []
        self._num_run_ahead = 0

    @property
    def is_running_ahead(self) -> bool:
        return self._num_run_ahead > 0

    async def verify(
        self,
        tokens: Sequence[int],
        draft_token_ids: Sequence[int],
        lookahead: Lookahead | None = None,
    ) -> VerifyResult:
        self.calls.append((list(tokens), tuple(draft_token_ids)))
        is_run_ahead = self.is_running_ahead and not draft_token_ids
        num_wanted = lookahead.num_tokens if isinstance(lookahead, RunningAhead) else 0
        self._num_run_ahead = self._num_run_ahead - 1 if is_run_ahead else num_wanted
        self.num_requests += not is_run_ahead
        if self.pipelined is not None and self.pipelined.tokens == tokens:
            assert self.pipelined.draft.token_ids == draft_token_ids
        self.pipelined = None
        if isinstance(lookahead, Pipelining):
            await self._pipeline(lookahead)
        if self._fails_at is not None and len(self.calls) > self._fails_at:
            raise ServiceUnavailable("the target is gone")
        choices = [
            self._next_token([*tokens, *draft_token_ids[:i]])
            for i in range(len(draft_token_ids) + 1)
        ]
        num_accepted, next_token = accept_matching(draft_token_ids, choices)
        length = len(tokens) + num_accepted
        is_bonus = num_accepted == len(draft_token_ids)
        return VerifyResult(
            len(tokens), num_accepted, next_token, is_bonus, length, TIMINGS, is_run_ahead
        )

    async def _pipeline(self, lookahead: Pipelining) -> None:
        request = asyncio.ensure_future(lookahead.next_request())
        await asyncio.sleep(0)
        if request.done():
            self.pipelined = request.result()
        request.cancel()


def nothing_predrafted(tokens: Sequence[int]) -> int:
    return 0


class FakeDrafter:
    """Proposes by a function, and fails from call `fails_at` on.

    Where predrafts are asked for, it has predrafted `num_predrafted(tokens)` tokens for the
    case that `tokens` are committed; if `is_late`, not before its growth is awaited.
    """

    def __init__(
        self,
        next_token: NextToken,
        fails_at: int | None = None,
        max_context_length: int = 1000,
        num_predrafted: NextToken = nothing_predrafted,
        is_late: bool = False,
    ) -> None:
        self._next_token = next_token
        self._fails_at = fails_at
        self._num_predrafted = num_predrafted
        self._plan = PredraftPlan()
        self._is_late = is_late
        self._awaited: list[int] = []
        self._late: list[int] = []  # what was asked for before its predraft was there
        self.max_context_length = max_context_length
        self.num_predrafted_tokens = 0
        self.is_closed = False
        self.calls: list[tuple[list[int], int]] = []
        self.followed: list[tuple[list[int], tuple[int, ...]]] = []

    async def until_readable(self, tokens: Sequence[int]) -> None:
        """At once."""

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
    ) -> Proposal:
        self.calls.append((list(tokens), num_speculative_tokens))
        self._take_call(plan)
        draft = self._draft(tokens, num_speculative_tokens)
        length = len(tokens) + max(0, len(draft) - 1)
        return Proposal(len(tokens), draft, length, TIMINGS)

    async def follow(self, tokens: Sequence[int], draft: Sequence[int], plan: PredraftPlan) -> None:
        self.followed.append((list(tokens), tuple(draft)))
        self._take_call(plan)

    def cached(self, tokens: Sequence[int]) -> Predraft | None:
        if self._is_late and self._late != tokens:
            return None
        num_tokens = min(self._num_predrafted(tokens), self._plan.num_tokens)
        if not self._plan.num_predrafts or num_tokens == 0:
            return None
        self.num_predrafted_tokens += num_tokens
        return Predraft(0, tuple(tokens), self._draft(tokens, num_tokens), forward_ns=7)

    def is_under_way(self, tokens: Sequence[int]) -> bool:
        if not self._is_late or self._late == tokens or not self._num_predrafted(tokens):
            return False
        self._awaited = list(tokens)
        return self._plan.num_predrafts > 0

    def after_full_acceptance(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        guess = self._next_token([*tokens, *draft])
        predraft = self.cached([*tokens, *draft, guess])
        if predraft is None:
            return None
        return dataclasses.replace(predraft, assumed_token_ids=(*draft, guess))

    def growth(self) -> asyncio.Future[None]:
        growth = asyncio.get_running_loop().create_future()
        if self._is_late:
            self._late = self._awaited
            growth.set_result(None)
        return growth

    def close(self, reason: OutriderError | None = None) -> None:
        self.is_closed = True

    def _take_call(self, plan: PredraftPlan) -> None:
        self._plan = plan
        num_calls = len(self.calls) + len(self.followed)
        if self._fails_at is not None and num_calls > self._fails_at:
            raise ServiceUnavailable("the draft is gone")

    def _draft(self, tokens: Sequence[int], num_tokens: int) -> tuple[int, ...]:
        sequence = list(tokens)
        for _ in range(num_tokens):
            sequence.append(self._next_token(sequence))
        return tuple(sequence[len(tokens) :])
