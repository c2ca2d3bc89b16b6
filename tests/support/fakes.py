"""A draft and a target without models: the loop's partners in unit tests."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from orchestrator.decoding.interfaces import Ahead, Foresight
from orchestrator.policy.round_trip import Distance
from outrider.errors import OutriderError, ServiceUnavailable
from outrider.protocol.messages import Predraft, PredraftPlan, Proposal, Timings, VerifyResult
from outrider.sampling.acceptance import accept_matching

NextToken = Callable[[Sequence[int]], int]
"""A model: the token that follows a sequence."""

TIMINGS = Timings(queue_ns=1, forward_ns=2, sample_ns=3, total_ns=10)


class FakeVerifier:
    """Verifies by a function, and fails from call `fails_at` on.

    With a foresight it takes its time: until something is sent ahead, if anything will be.
    """

    def __init__(self, next_token: NextToken, fails_at: int | None = None) -> None:
        self._next_token = next_token
        self._fails_at = fails_at
        self.num_requests = 0
        self.ahead: Ahead | None = None
        self.calls: list[tuple[list[int], tuple[int, ...]]] = []
        self._num_more = 0

    @property
    def goes_on(self) -> bool:
        return self._num_more > 0

    async def verify(
        self,
        tokens: Sequence[int],
        draft_token_ids: Sequence[int],
        foresight: Foresight | None = None,
        num_run_ahead_tokens: int = 0,
    ) -> VerifyResult:
        self.calls.append((list(tokens), tuple(draft_token_ids)))
        is_run_ahead = self.goes_on and not draft_token_ids
        self._num_more = self._num_more - 1 if is_run_ahead else num_run_ahead_tokens
        self.num_requests += not is_run_ahead
        if self.ahead is not None and self.ahead.tokens == tokens:
            assert self.ahead.draft_token_ids == draft_token_ids
        self.ahead = None
        if foresight is not None:
            await self._send_ahead(foresight)
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

    async def _send_ahead(self, foresight: Foresight) -> None:
        foreseeing = asyncio.ensure_future(foresight())
        await asyncio.sleep(0)
        if foreseeing.done():
            self.ahead = foreseeing.result()
        foreseeing.cancel()


class Far(Distance):
    """A target that is far away and takes `server_ns`, whatever results take."""

    is_far = True

    def observe(self, waited_ns: int, server_ns: int, is_pipelined: bool) -> None: ...


def nothing_predrafted(tokens: Sequence[int]) -> int:
    return 0


class FakeDrafter:
    """Proposes by a function, and fails from call `fails_at` on.

    Where branches are asked for, it has predrafted `num_predrafted(tokens)` tokens for the
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
        self._predraft_plan = PredraftPlan()
        self._is_late = is_late
        self._awaited: list[int] = []
        self._late: list[
            int
        ] = []  # what is predrafted for, but was not there yet when it was asked
        self.max_context_length = max_context_length
        self.num_predrafted_tokens = 0
        self.is_closed = False
        self.calls: list[tuple[list[int], int]] = []
        self.followed: list[tuple[list[int], tuple[int, ...]]] = []

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, predraft_plan: PredraftPlan
    ) -> Proposal:
        self.calls.append((list(tokens), num_speculative_tokens))
        self._take_call(predraft_plan)
        draft = self._draft(tokens, num_speculative_tokens)
        length = len(tokens) + max(0, len(draft) - 1)
        return Proposal(len(tokens), draft, length, TIMINGS)

    async def follow(
        self, tokens: Sequence[int], draft: Sequence[int], predraft_plan: PredraftPlan
    ) -> None:
        self.followed.append((list(tokens), tuple(draft)))
        self._take_call(predraft_plan)

    def predrafted(self, tokens: Sequence[int]) -> Predraft | None:
        if self._is_late and self._late != tokens:
            return None
        num_tokens = min(self._num_predrafted(tokens), self._predraft_plan.num_tokens)
        if not self._predraft_plan.num_predrafts or num_tokens == 0:
            return None
        self.num_predrafted_tokens += num_tokens
        return Predraft(0, tuple(tokens), self._draft(tokens, num_tokens), forward_ns=7)

    def is_coming(self, tokens: Sequence[int]) -> bool:
        if not self._is_late or self._late == tokens or not self._num_predrafted(tokens):
            return False
        self._awaited = list(tokens)
        return self._predraft_plan.num_predrafts > 0

    def likeliest(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        guess = self._next_token([*tokens, *draft])
        predrafted = self.predrafted([*tokens, *draft, guess])
        if predrafted is None:
            return None
        return dataclasses.replace(predrafted, assumed_token_ids=(*draft, guess))

    def growth(self) -> asyncio.Future[None]:
        growth = asyncio.get_running_loop().create_future()
        if self._is_late:
            self._late = self._awaited
            growth.set_result(None)
        return growth

    def close(self, reason: OutriderError | None = None) -> None:
        self.is_closed = True

    def _take_call(self, predraft_plan: PredraftPlan) -> None:
        self._predraft_plan = predraft_plan
        num_calls = len(self.calls) + len(self.followed)
        if self._fails_at is not None and num_calls > self._fails_at:
            raise ServiceUnavailable("the draft is gone")

    def _draft(self, tokens: Sequence[int], num_tokens: int) -> tuple[int, ...]:
        sequence = list(tokens)
        for _ in range(num_tokens):
            sequence.append(self._next_token(sequence))
        return tuple(sequence[len(tokens) :])
