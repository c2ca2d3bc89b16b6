"""What the loop works with: a drafter, a verifier, and what the target may do ahead of the loop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.step import DraftTokens
from outrider.errors import OutriderError
from outrider.protocol.messages import Predraft, PredraftPlan, Proposal, VerifyResult


@dataclass(frozen=True, slots=True)
class PipelinedRequest:
    """The next verification, sent on the assumption that exactly `tokens` will be committed.

    The last of them is the target's own.
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
    """Lets the target decode `num_tokens` tokens after its result without being asked."""

    num_tokens: int


Lookahead = Pipelining | RunningAhead
"""How the target gets work before the loop has seen its result."""


class Drafter(Protocol):
    """Proposes tokens for one sequence, and predrafts for outcomes of their verification.

    `propose` and `follow` raise OutriderError; the loop then goes on without the drafter. What is
    given here is right for one that never predrafts.
    """

    max_context_length: int
    num_predrafted_tokens: int
    """Draft tokens of all predrafts of this session."""

    async def until_readable(self, tokens: Sequence[int]) -> None:
        """Returns once it can read `tokens`: at once, unless the target has to read them first."""
        return

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
    ) -> Proposal:
        """Drafts tokens after `tokens`, then predrafts by `plan` for their verification."""
        ...

    async def follow(self, tokens: Sequence[int], draft: Sequence[int], plan: PredraftPlan) -> None:
        """Learns that `draft` is being verified after `tokens`, and predrafts for that."""
        return

    def cached(self, tokens: Sequence[int]) -> Predraft | None:
        """The predraft for the case that `tokens` are committed, as far as it has come."""
        return None

    def is_under_way(self, tokens: Sequence[int]) -> bool:
        """Whether a predraft for that case has been started and has no token yet."""
        return False

    def after_full_acceptance(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        """The predraft for the case that all of `draft`, which is being verified after
        `tokens`, are accepted; the draft guesses the token after them."""
        return None

    def growth(self) -> asyncio.Future[None]:
        """Done when a predraft has grown; never, if none will."""
        return asyncio.get_running_loop().create_future()

    def close(self, reason: OutriderError | None = None) -> None:
        """Ends the session and all work for it. A second call does nothing.

        Args:
            reason: why it is given up before the text is done.
        """
        return


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
        """The result for draft tokens after `tokens`. Raises OutriderError.

        With `Pipelining` the next request may be sent meanwhile. If `pipelined.tokens` are then
        committed, the next call must pass exactly them and the draft tokens of
        `pipelined.draft`; it only awaits the result. Otherwise the request is stale.

        With `RunningAhead` the next calls without draft tokens only await results. A call with
        draft tokens or `Pipelining` ends that.
        """
        ...
