"""The same loop with draft and target inside one process, without gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from draft_service.__main__ import load_drafter
from draft_service.drafters import DrafterSession
from orchestrator.decoder import decode
from orchestrator.latency import CriticalPath
from orchestrator.mirror import Mirror
from orchestrator.policy import Experience, FixedLength
from outrider.engine.model import Engine, EngineOptions
from outrider.loading import in_own_thread
from outrider.messages import GREEDY, Preparation, Prepared, Proposal, Verdict
from target_service.verifier import Verifier, VerifierSession

_loaded: dict[str, Any] = {}


def load(target: EngineOptions, draft: EngineOptions) -> None:
    """Loads both models; called once in the worker process."""
    engine = asyncio.run(in_own_thread(lambda: Engine(target)))
    _loaded["max_context_length"] = engine.max_context_length
    _loaded["verifier"] = Verifier(engine)
    _loaded["drafter"] = asyncio.run(in_own_thread(lambda: load_drafter(draft)))[1]


def generate(ids: list[int], num_tokens: int, k: int) -> tuple[list[int], float]:
    """Greedy tokens, and the seconds they took."""
    return asyncio.run(_generate(ids, num_tokens, k))


async def _generate(ids: list[int], num_tokens: int, k: int) -> tuple[list[int], float]:
    began = time.perf_counter()
    drafter, verifier = _loaded["drafter"].open_session(), _loaded["verifier"].open_session()
    tokens: list[int] = []
    steps = decode(
        ids,
        len(ids) + num_tokens,
        LocalVerifier(verifier),
        LocalDrafter(drafter),
        FixedLength(k, Experience()),
        CriticalPath(),
    )
    async for step in steps:
        tokens.extend(step.token_ids)
    drafter.close()
    verifier.close()
    return tokens, time.perf_counter() - began


class LocalDrafter:
    """`orchestrator.decoder.Drafter` on a session of this process."""

    def __init__(self, session: DrafterSession) -> None:
        self.max_context_length = _loaded["max_context_length"]
        self.num_prepared_tokens = 0
        self._session = session
        self._mirror = Mirror()

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, preparation: Preparation
    ) -> Proposal:
        context_length, token_ids = self._mirror.difference(tokens)
        proposal = await self._session.propose(
            context_length, token_ids, num_speculative_tokens, GREEDY, None
        )
        self._mirror.hold(tokens, proposal.draft_token_ids, proposal.sequence_length)
        return proposal

    async def follow(
        self, tokens: Sequence[int], draft: Sequence[int], preparation: Preparation
    ) -> None:
        """Never called: nothing is prepared here."""

    def prepared(self, tokens: Sequence[int]) -> Prepared | None:
        return None


class LocalVerifier:
    """`orchestrator.decoder.Verifier` on a session of this process."""

    def __init__(self, session: VerifierSession) -> None:
        self._session = session
        self._mirror = Mirror()

    async def verify(self, tokens: Sequence[int], draft_token_ids: Sequence[int]) -> Verdict:
        context_length, token_ids = self._mirror.difference(tokens)
        verdict = await self._session.verify(context_length, token_ids, draft_token_ids, GREEDY)
        self._mirror.hold(tokens, draft_token_ids, verdict.sequence_length)
        return verdict
