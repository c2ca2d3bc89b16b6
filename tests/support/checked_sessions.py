"""Sessions that check what the loop gets of them, and count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.sessions.draft_session import DraftSession
from orchestrator.sessions.target_session import TargetSession
from outrider.protocol.messages import (
    Predraft,
    PredraftPlan,
    Proposal,
    SamplingParams,
    VerifyResult,
)
from tests.support.toy_pair import ToyPair


class CheckedDrafter:
    """A draft session of which everything that the loop gets is compared with the model."""

    def __init__(self, session: DraftSession, services: ToyPair, params: SamplingParams) -> None:
        self._session, self._services, self._params = session, services, params
        self.num_hits = self.num_proposed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
    ) -> Proposal:
        proposal = await self._session.propose(tokens, num_speculative_tokens, plan)
        expected = self._expected(tokens, len(proposal.draft_token_ids))
        assert list(proposal.draft_token_ids) == expected, "a proposal for another context"
        self.num_proposed += len(proposal.draft_token_ids)
        assert len(proposal.draft_token_ids) <= num_speculative_tokens
        return proposal

    def cached(self, tokens: Sequence[int]) -> Predraft | None:
        predraft = self._session.cached(tokens)
        if predraft is not None:
            self.num_hits += 1
            assert tuple(tokens[predraft.context_length :]) == predraft.assumed_token_ids
            self._check(tokens, predraft.draft_token_ids)
        return predraft

    def after_full_acceptance(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        predraft = self._session.after_full_acceptance(tokens, draft)
        if predraft is not None:
            assert predraft.assumed_token_ids[:-1] == tuple(draft)
            self._check([*tokens, *predraft.assumed_token_ids], predraft.draft_token_ids)
        return predraft

    def _check(self, tokens: Sequence[int], draft: Sequence[int]) -> None:
        if self._services.predrafts_are_exact:
            assert list(draft) == self._expected(tokens, len(draft)), "of another context"

    def _expected(self, tokens: Sequence[int], num_tokens: int) -> list[int]:
        model = self._services.draft_model
        expected: list[int] = model.continuation(tokens, num_tokens, self._params)
        return expected


class CountedTarget(TargetSession):
    """A target session that counts how often its target ran ahead, and was interrupted."""

    num_run_ahead = 0
    num_interrupted = 0

    async def verify(self, *args: Any, **kwargs: Any) -> VerifyResult:
        was_running = self.is_running_ahead
        result = await super().verify(*args, **kwargs)
        self.num_run_ahead += result.is_run_ahead
        self.num_interrupted += was_running and not result.is_run_ahead
        return result
