"""Draft and target inside one process: the same loop without gRPC."""

from __future__ import annotations

from collections.abc import Sequence

from draft_service.drafters import DrafterSession
from orchestrator.mirror import Mirror
from outrider.messages import GREEDY, Proposal, SamplingParams, Verdict
from target_service.verifier import VerifierSession


class LocalDrafter:
    """`orchestrator.decoder.Drafter` on a session of this process."""

    def __init__(
        self, session: DrafterSession, max_context_length: int, params: SamplingParams = GREEDY
    ) -> None:
        self.max_context_length = max_context_length
        self._session = session
        self._params = params
        self._mirror = Mirror()

    async def propose(self, tokens: Sequence[int], num_speculative_tokens: int) -> Proposal:
        context_length, token_ids = self._mirror.difference(tokens)
        proposal = await self._session.propose(
            context_length, token_ids, num_speculative_tokens, self._params, None
        )
        self._mirror.hold(tokens, proposal.draft_token_ids, proposal.sequence_length)
        return proposal


class LocalVerifier:
    """`orchestrator.decoder.Verifier` on a session of this process."""

    def __init__(self, session: VerifierSession, params: SamplingParams = GREEDY) -> None:
        self._session = session
        self._params = params
        self._mirror = Mirror()

    async def verify(self, tokens: Sequence[int], draft_token_ids: Sequence[int]) -> Verdict:
        context_length, token_ids = self._mirror.difference(tokens)
        verdict = await self._session.verify(
            context_length, token_ids, draft_token_ids, self._params
        )
        self._mirror.hold(tokens, draft_token_ids, verdict.sequence_length)
        return verdict
