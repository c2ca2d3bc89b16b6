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
from orchestrator.policy import MAX_LENGTH, LengthPolicy, StepCost
from outrider import telemetry
from outrider.errors import OutriderError
from outrider.messages import Preparation, Prepared, Proposal, Verdict
from outrider.prompt_lookup import longest_match

log = logging.getLogger(__name__)


class Drafter(Protocol):
    """Proposes tokens for one sequence, and prepares for what may become of them.

    All but `prepared` raise OutriderError; the loop then goes on without the drafter.
    """

    @property
    def max_context_length(self) -> int: ...

    @property
    def num_prepared_tokens(self) -> int:
        """Draft tokens of all that was ever prepared."""
        ...

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, preparation: Preparation
    ) -> Proposal:
        """Drafts tokens after `tokens`, then, unasked, after outcomes of their verification."""
        ...

    async def follow(
        self, tokens: Sequence[int], draft: Sequence[int], preparation: Preparation
    ) -> None:
        """Learns that `draft` is being verified, prepared or not its own; prepares for that."""
        ...

    def prepared(self, tokens: Sequence[int]) -> Prepared | None:
        """What has been prepared so far for the case that `tokens` are committed."""
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
    was_prepared: bool = False
    """Whether the draft tokens were there before the verdict that they follow."""
    was_looked_up: bool = False
    """Whether the draft tokens stood in the text before."""

    @property
    def source(self) -> str:
        """Where its draft tokens came from."""
        if self.was_looked_up:
            return "looked up"
        return "prepared" if self.was_prepared else "drafted"


async def decode(
    prompt: Sequence[int],
    max_length: int,
    verifier: Verifier,
    drafter: Drafter | None,
    lengths: LengthPolicy,
    path: CriticalPath,
    num_branches: int = 0,
    looks_up: bool = False,
) -> AsyncGenerator[Step, None]:
    """Continues `prompt` until the sequence has `max_length` tokens.

    Without a drafter, and where `lengths` says 0, a step commits one token: the target
    alone, through the same code. With `num_branches`, the drafter works while the
    verifier does, on so many outcomes of the verification. With `looks_up`, what followed
    the last tokens when they stood in the text before is a draft, too, which costs nothing.

    Raises:
        OutriderError: the verifier failed. A failing drafter is dropped instead.
    """
    tokens = list(prompt)
    proposer = Proposer(drafter, lengths, num_branches, looks_up, path)
    proposer.prefill(tokens)
    try:
        with telemetry.span("prefill"):
            verdict = await verifier.verify(tokens, ())
        path.spend("prefill_target")
        tokens.append(verdict.next_token_id)
        yield Step((verdict.next_token_id,), 0, 0)
        while len(tokens) < max_length:
            with telemetry.span("step") as span:
                draft = await proposer.propose(tokens, max_length - len(tokens) - 1)
                path.spend("orchestrator")
                verdict = await verifier.verify(tokens, draft)
                verify_ns = path.spend_waiting("verify", verdict.timings)
                span.set(
                    draft_tokens=len(draft),
                    accepted_tokens=verdict.num_accepted_tokens,
                    was_prepared=proposer.was_prepared,
                    was_looked_up=proposer.match_length > 0,
                )
            lengths.observe(
                StepCost(
                    len(draft),
                    verdict.num_accepted_tokens,
                    proposer.waited_ns,
                    verify_ns,
                    proposer.was_prepared,
                    proposer.match_length,
                )
            )
            committed = (*draft[: verdict.num_accepted_tokens], verdict.next_token_id)
            tokens.extend(committed)
            yield Step(
                committed,
                len(draft),
                verdict.num_accepted_tokens,
                proposer.was_prepared,
                proposer.match_length > 0,
            )
    finally:
        proposer.close()


class Proposer:
    """Gets draft tokens: from the text itself, and from a drafter for as long as it works."""

    def __init__(
        self,
        drafter: Drafter | None,
        lengths: LengthPolicy,
        num_branches: int,
        looks_up: bool,
        path: CriticalPath,
    ) -> None:
        # Of the last call of `propose`:
        self.was_prepared = False
        self.match_length = 0  # of draft tokens that were looked up
        self.waited_ns = 0  # for the proposal; the reading of the prompt does not count
        self._drafter = drafter
        self._lengths = lengths
        self._num_branches = num_branches
        self._looks_up = looks_up
        self._path = path
        self._is_preparing = False
        self._prefill: asyncio.Task[Proposal | None] | None = None

    def prefill(self, prompt: Sequence[int]) -> None:
        """Lets the draft read the prompt while the target does."""
        length = self._lengths.next_length()
        if self._drafter is not None:
            self._prefill = asyncio.create_task(self._ask(self._drafter, list(prompt), 0, length))

    async def propose(self, tokens: Sequence[int], room: int) -> tuple[int, ...]:
        """Draft tokens, at most `room`; none where nothing is to be had."""
        self.was_prepared, self.match_length, self.waited_ns = False, 0, 0
        length = self._lengths.next_length()
        # What followed a single token says less than a model does.
        shortest = 1 if length == 0 or self._drafter is None else 2
        if length == 0:
            await self._rest(tokens)
        looked_up = self._look_up(tokens, room, shortest)
        if looked_up:
            if length and self._prefill is None:
                await self._follow(tokens, looked_up, length)
            return looked_up
        if length == 0:
            return ()
        await self._finish_prefill()
        return await self._draft(tokens, room, length)

    def _look_up(self, tokens: Sequence[int], room: int, shortest: int) -> tuple[int, ...]:
        if not self._looks_up or room == 0:
            return ()
        match = longest_match(tokens, shortest, MAX_LENGTH)
        if match is None:
            return ()
        num_tokens = min(self._lengths.lookup_length(match.length), room)
        self.match_length = match.length if num_tokens else 0
        return tuple(tokens[match.end : match.end + num_tokens])

    async def _draft(self, tokens: Sequence[int], room: int, length: int) -> tuple[int, ...]:
        if self._drafter is None:
            return ()
        num_tokens = min(length, room, self._drafter.max_context_length - len(tokens))
        if num_tokens <= 0:
            return ()
        self._path.spend("orchestrator")
        prepared = self._drafter.prepared(tokens)
        if prepared is not None:
            # Neither drafting nor the way to the draft is waited for.
            draft = prepared.draft_token_ids[:num_tokens]
            self._path.hide("draft_compute", prepared.forward_ns)
            self.was_prepared = True
            await self._follow(tokens, draft, length)
            return draft
        proposal = await self._ask(self._drafter, tokens, num_tokens, length)
        if proposal is None:
            self._path.spend("draft_network")
            return ()
        self.waited_ns = self._path.spend_waiting("draft", proposal.timings)
        return proposal.draft_token_ids

    async def _rest(self, tokens: Sequence[int]) -> None:
        """Ends preparations where the drafter is not needed: they would share its cores."""
        is_reading = self._prefill is not None and not self._prefill.done()
        if self._is_preparing and not is_reading:
            await self._finish_prefill()
            await self._follow(tokens, (), 0)

    async def _follow(self, tokens: Sequence[int], draft: Sequence[int], length: int) -> None:
        """Lets the drafter prepare behind a draft that it was not asked for."""
        if self._drafter is None or len(tokens) + len(draft) > self._drafter.max_context_length:
            return
        try:
            await self._drafter.follow(tokens, draft, self._preparation(length))
        except OutriderError as error:
            self._lose(error)

    def _preparation(self, length: int) -> Preparation:
        preparation = Preparation(self._num_branches if length else 0, length)
        self._is_preparing = preparation.num_branches > 0
        return preparation

    async def _finish_prefill(self) -> None:
        if self._prefill is None:
            return
        self._path.spend("orchestrator")
        proposal = await self._prefill
        self._prefill = None
        waited_ns = self._path.spend("prefill_draft")
        if proposal is not None:
            self._path.hide("prefill_draft", proposal.timings.total_ns - waited_ns)

    async def _ask(
        self, drafter: Drafter, tokens: Sequence[int], k: int, length: int
    ) -> Proposal | None:
        """A proposal of at most k tokens; `length` more are prepared after each outcome."""
        try:
            return await drafter.propose(tokens, k, self._preparation(length))
        except OutriderError as error:
            self._lose(error)
            return None

    def _lose(self, error: OutriderError) -> None:
        log.warning("going on without the draft: %s", error)
        self._drafter = None

    def close(self) -> None:
        if self._prefill is not None:
            self._prefill.cancel()
