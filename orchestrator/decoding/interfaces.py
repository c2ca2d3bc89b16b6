"""What the loop works with: a drafter, a verifier, and what passes between them early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.decoding.lookup import NOTHING, LookedUp
from outrider.errors import OutriderError
from outrider.protocol.messages import Predraft, PredraftPlan, Proposal, VerifyResult


@dataclass(frozen=True, slots=True)
class Ahead:
    """The verification that comes next if the one under way turns out as assumed.

    `tokens` would then be committed, the last of them as the target's own choice.
    """

    tokens: list[int]
    draft_token_ids: tuple[int, ...]
    looked_up: LookedUp = NOTHING
    """The draft tokens, if they stand in the text."""
    forward_ns: int = 0
    """Spent on predrafting the others."""


Foresight = Callable[[], Awaitable[Ahead]]
"""Waits, maybe for ever, until the next verification is worth sending ahead; may be cancelled."""


class Drafter(Protocol):
    """Proposes tokens for one sequence, and predrafts for what may become of them.

    `propose` and `follow` raise OutriderError; the loop then goes on without the drafter.
    """

    @property
    def max_context_length(self) -> int: ...

    @property
    def num_predrafted_tokens(self) -> int:
        """Draft tokens of all that was ever predrafted."""
        ...

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, predraft_plan: PredraftPlan
    ) -> Proposal:
        """Drafts tokens after `tokens`, then, unasked, after outcomes of their verification."""
        ...

    async def follow(
        self, tokens: Sequence[int], draft: Sequence[int], predraft_plan: PredraftPlan
    ) -> None:
        """Learns that `draft` is being verified, predrafted or not its own; predrafts for that."""
        ...

    def predrafted(self, tokens: Sequence[int]) -> Predraft | None:
        """What has been predrafted so far for the case that `tokens` are committed."""
        ...

    def is_coming(self, tokens: Sequence[int]) -> bool:
        """Whether something is being predrafted for that case, but nothing is there yet."""
        ...

    def likeliest(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        """What has been predrafted so far for the case that all of `draft`, which is being
        verified behind `tokens`, are accepted; the draft guesses the token after them."""
        ...

    def growth(self) -> asyncio.Future[None]:
        """Done when more has been predrafted; never, if nothing more will be."""
        ...

    def close(self, reason: OutriderError | None = None) -> None:
        """Ends the session and whatever it works on. Nothing happens at a second call.

        Args:
            reason: why it is given up before the text is done.
        """
        ...


class Verifier(Protocol):
    """Verifies draft tokens for one sequence."""

    @property
    def ahead(self) -> Ahead | None:
        """What was sent ahead during the last verification."""
        ...

    @property
    def goes_on(self) -> bool:
        """Whether results are to come that need no request."""
        ...

    async def verify(
        self,
        tokens: Sequence[int],
        draft_token_ids: Sequence[int],
        foresight: Foresight | None = None,
        num_run_ahead_tokens: int = 0,
    ) -> VerifyResult:
        """Raises OutriderError.

        While it waits it may send ahead what `foresight` says. If then just these tokens are
        committed, the next call must be for them and their draft tokens, and only awaits
        the result; else what was sent is stale, and nobody's loss.

        Behind the result the target goes on alone by `num_run_ahead_tokens`: as many calls without
        draft tokens only await results. Another call ends that.
        """
        ...
