"""What the loop works with: a drafter, a verifier, and what the target may do ahead of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.step import DraftTokens
from outrider.errors import OutriderError
from outrider.protocol.messages import Predraft, PredraftPlan, Proposal, VerifyResult


@dataclass(frozen=True, slots=True)
class PipelinedRequest:
    """The next verification, if the result of the current one is as assumed.

    `tokens` would then be committed, the last of them as the target's own choice.
    """

    tokens: list[int]
    draft: DraftTokens


@dataclass(frozen=True, slots=True)
class Pipelining:
    """Lets the verifier send the next verification while it waits for the current result.

    `next_request` waits, possibly for ever, until one is worth sending; it may be cancelled.
    """

    next_request: Callable[[], Awaitable[PipelinedRequest]]


@dataclass(frozen=True, slots=True)
class RunningAhead:
    """Lets the target decode so many tokens behind its result without being asked."""

    num_tokens: int


Lookahead = Pipelining | RunningAhead
"""How the target gets work before the loop has seen its result."""


class Drafter(Protocol):
    """Proposes tokens for one sequence, and predrafts for outcomes of their verification.

    `propose` and `follow` raise OutriderError; the loop then goes on without the drafter.
    """

    @property
    def max_context_length(self) -> int: ...

    @property
    def num_predrafted_tokens(self) -> int:
        """Draft tokens of all that was ever predrafted."""
        ...

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
    ) -> Proposal:
        """Drafts tokens behind `tokens`, then predrafts by `plan` for their verification."""
        ...

    async def follow(self, tokens: Sequence[int], draft: Sequence[int], plan: PredraftPlan) -> None:
        """Learns that `draft` is being verified behind `tokens`, and predrafts for that."""
        ...

    def cached(self, tokens: Sequence[int]) -> Predraft | None:
        """The predraft for the case that `tokens` are committed, as far as it has come."""
        ...

    def is_under_way(self, tokens: Sequence[int]) -> bool:
        """Whether there will be a predraft for that case, but none of its tokens is there yet."""
        ...

    def likeliest(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        """The predraft for the case that all of `draft`, which is being verified behind
        `tokens`, are accepted; the draft guesses the token behind them."""
        ...

    def growth(self) -> asyncio.Future[None]:
        """Done when a predraft has grown; never, if none will."""
        ...

    def close(self, reason: OutriderError | None = None) -> None:
        """Ends the session and all work for it. A second call does nothing.

        Args:
            reason: why it is given up before the text is done.
        """
        ...


class Verifier(Protocol):
    """Verifies draft tokens for one sequence."""

    @property
    def pipelined(self) -> PipelinedRequest | None:
        """The request that was sent during the last verification."""
        ...

    @property
    def is_running_ahead(self) -> bool:
        """Whether results are to come that need no request."""
        ...

    async def verify(
        self,
        tokens: Sequence[int],
        draft_token_ids: Sequence[int],
        lookahead: Lookahead | None = None,
    ) -> VerifyResult:
        """The result for draft tokens behind `tokens`. Raises OutriderError.

        With `Pipelining` the next request may be sent meanwhile. If its tokens are then
        committed, the next call must be for them and its draft tokens, and only waits for the
        result; otherwise the request is stale and costs nothing.

        With `RunningAhead` the next calls without draft tokens only wait for results. Another
        call ends that.
        """
        ...
