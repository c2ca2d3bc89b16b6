"""The decode loop's interfaces to draft and target, and the kinds of lookahead."""

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

    The last of `tokens` is the assumed next token of the target.
    """

    tokens: list[int]
    draft: DraftTokens


@dataclass(frozen=True, slots=True)
class Pipelining:
    """Lets the verifier send the next verification while it waits for the current result.

    `next_request` returns once a request is worth sending, which may be never; the verifier
    cancels it when the current result arrives.
    """

    next_request: Callable[[], Awaitable[PipelinedRequest]]


@dataclass(frozen=True, slots=True)
class RunningAhead:
    """Lets the target decode up to `num_tokens` tokens after its result without requests."""

    num_tokens: int


Lookahead = Pipelining | RunningAhead
"""Work for the target before the loop has seen its result."""


class Drafter(Protocol):
    """Proposes tokens for one sequence, and predrafts for outcomes of their verification.

    `propose` and `follow` raise OutriderError if the draft fails; the loop then continues without
    it. The default implementations are those of a drafter that never predrafts.
    """

    max_context_length: int
    num_predrafted_tokens: int
    """Tokens predrafted in this session so far, for all outcomes."""

    async def until_readable(self, tokens: Sequence[int]) -> None:
        """Returns once it can read `tokens`: immediately, or for a feature draft once the target
        has read them."""
        return

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
    ) -> Proposal:
        """Drafts tokens after `tokens`, then predrafts for their verification as `plan` says."""
        ...

    async def follow(self, tokens: Sequence[int], draft: Sequence[int], plan: PredraftPlan) -> None:
        """Tells it that `draft` is being verified after `tokens`, so that it predrafts for that
        verification as `plan` says."""
        return

    def cached(self, tokens: Sequence[int]) -> Predraft | None:
        """The predraft for the case that `tokens` are committed, with the draft tokens received so
        far; None without any."""
        return None

    def is_under_way(self, tokens: Sequence[int]) -> bool:
        """Whether a predraft for that case has been started but has no draft token yet."""
        return False

    def after_full_acceptance(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        """The predraft for the case that all of `draft`, which is being verified after
        `tokens`, is accepted and the draft's guess of the bonus token is right."""
        return None

    def growth(self) -> asyncio.Future[None]:
        """A future that is done when a predraft has grown; never, if none grows."""
        return asyncio.get_running_loop().create_future()

    def close(self, reason: OutriderError | None = None) -> None:
        """Ends the session and all work for it. Further calls do nothing.

        Args:
            reason: why the session ends before the text does, if it does.
        """
        return


class Verifier(Protocol):
    """Verifies draft tokens for one sequence."""

    @property
    def pipelined(self) -> PipelinedRequest | None:
        """The pipelined request that was sent during the last verification; None: none was."""
        ...

    @property
    def is_running_ahead(self) -> bool:
        """Whether the target is running ahead, so that results arrive without requests."""
        ...

    async def verify(
        self,
        tokens: Sequence[int],
        draft_token_ids: Sequence[int],
        lookahead: Lookahead | None = None,
    ) -> VerifyResult:
        """Verifies draft tokens after `tokens`. Raises OutriderError.

        With `Pipelining`, the next request may be sent while this call waits. If exactly
        `pipelined.tokens` are committed then, the next call must pass these tokens and the draft
        tokens of `pipelined.draft`; it sends nothing and awaits the result. Otherwise the
        pipelined request is stale.

        With `RunningAhead`, following calls without draft tokens send nothing and await results. A
        call with draft tokens or `Pipelining` ends the run-ahead.
        """
        ...
