"""The loop: propose, verify, commit.

The committed tokens are the only truth. Draft and target hold copies that each
step brings up to date, so a rejection, a full acceptance and a fresh session are
the same case: both are told the committed tokens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.latency import CriticalPath
from outrider.errors import OutriderError
from outrider.messages import Proposal, Verdict

log = logging.getLogger(__name__)


class Drafter(Protocol):
    """Proposes tokens for one sequence."""

    @property
    def max_context_length(self) -> int: ...

    async def propose(self, tokens: Sequence[int], num_speculative_tokens: int) -> Proposal:
        """Raises OutriderError; the loop then goes on without it."""
        ...


class Verifier(Protocol):
    """Verifies draft tokens for one sequence."""

    async def verify(self, tokens: Sequence[int], draft_token_ids: Sequence[int]) -> Verdict:
        """Raises OutriderError."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens that one verification committed: accepted draft tokens, then the target's own."""

    token_ids: tuple[int, ...]
    num_draft_tokens: int
    num_accepted_tokens: int


async def decode(
    prompt: Sequence[int],
    max_length: int,
    verifier: Verifier,
    drafter: Drafter | None,
    num_speculative_tokens: int,
    path: CriticalPath,
) -> AsyncGenerator[Step, None]:
    """Continues `prompt` until the sequence has `max_length` tokens.

    Without a drafter, or with `num_speculative_tokens` 0, each step commits one
    token: the target alone, through the same code.

    Raises:
        OutriderError: the verifier failed. A failing drafter is dropped instead.
    """
    tokens = list(prompt)
    proposer = Proposer(drafter, num_speculative_tokens, path)
    proposer.prefill(tokens)
    try:
        verdict = await verifier.verify(tokens, ())
        path.spend("prefill_target")
        tokens.append(verdict.next_token_id)
        yield Step((verdict.next_token_id,), 0, 0)
        while len(tokens) < max_length:
            draft = await proposer.propose(tokens, max_length - len(tokens) - 1)
            path.spend("orchestrator")
            verdict = await verifier.verify(tokens, draft)
            path.spend_waiting("verify", verdict.timings)
            committed = (*draft[: verdict.num_accepted_tokens], verdict.next_token_id)
            tokens.extend(committed)
            yield Step(committed, len(draft), verdict.num_accepted_tokens)
    finally:
        proposer.close()


class Proposer:
    """Gets proposals from a drafter for as long as it works."""

    def __init__(
        self, drafter: Drafter | None, num_speculative_tokens: int, path: CriticalPath
    ) -> None:
        self._drafter = drafter if num_speculative_tokens else None
        self._num_speculative_tokens = num_speculative_tokens
        self._path = path
        self._prefill: asyncio.Task[Proposal | None] | None = None

    def prefill(self, prompt: Sequence[int]) -> None:
        """Lets the draft read the prompt while the target does."""
        if self._drafter is not None:
            self._prefill = asyncio.create_task(self._ask(self._drafter, list(prompt), 0))

    async def propose(self, tokens: Sequence[int], room: int) -> tuple[int, ...]:
        """Draft tokens, at most `room`; none where there is no drafter (any more)."""
        await self._finish_prefill()
        if self._drafter is None:
            return ()
        num_tokens = min(
            self._num_speculative_tokens, room, self._drafter.max_context_length - len(tokens)
        )
        if num_tokens <= 0:
            return ()
        self._path.spend("orchestrator")
        proposal = await self._ask(self._drafter, tokens, num_tokens)
        if proposal is None:
            self._path.spend("draft_network")
            return ()
        self._path.spend_waiting("draft", proposal.timings)
        return proposal.draft_token_ids

    async def _finish_prefill(self) -> None:
        if self._prefill is None:
            return
        self._path.spend("orchestrator")
        proposal = await self._prefill
        self._prefill = None
        waited_ns = self._path.spend("prefill_draft")
        if proposal is not None:
            self._path.hide("prefill_draft", proposal.timings.total_ns - waited_ns)

    async def _ask(self, drafter: Drafter, tokens: Sequence[int], k: int) -> Proposal | None:
        try:
            return await drafter.propose(tokens, k)
        except OutriderError as error:
            log.warning("going on without the draft: %s", error)
            self._drafter = None
            return None

    def close(self) -> None:
        if self._prefill is not None:
            self._prefill.cancel()
