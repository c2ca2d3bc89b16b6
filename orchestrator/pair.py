"""The pair of services that an orchestrator works with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.clients import DraftClient, TargetClient
from orchestrator.experience import Experience
from orchestrator.partners import Drafter, Verifier
from orchestrator.timeline import Timeline
from orchestrator.tokenizer import Tokenizer
from orchestrator.vocabulary import check_compatible
from outrider.errors import OutriderError
from outrider.messages import ModelInfo, SamplingParams

log = logging.getLogger(__name__)

# A service may still download its model.
CONNECT_SECONDS = 900.0

_INFO_SECONDS = 1.0


class Pair:
    """A target, its tokenizer, and maybe a draft with the same vocabulary."""

    def __init__(
        self,
        target: TargetClient,
        target_info: ModelInfo,
        tokenizer: Tokenizer,
        draft: DraftClient | None,
        draft_info: ModelInfo | None,
    ) -> None:
        self._target = target
        self._draft = draft
        self.target_info = target_info
        self.draft_info = draft_info
        self.tokenizer = tokenizer
        self.experience = Experience(token_ns=target_info.token_ns)

    @classmethod
    async def connect(cls, target_address: str, draft_address: str | None) -> Pair:
        """Waits for both services and checks that they fit.

        Raises:
            ServiceUnavailable: one does not answer.
            VocabularyMismatch: their vocabularies differ.
        """
        target = TargetClient(target_address)
        target_info = await target.wait_until_loaded(CONNECT_SECONDS)
        tokenizer = Tokenizer(await target.tokenizer_files())
        if draft_address is None:
            return cls(target, target_info, tokenizer, None, None)
        draft = DraftClient(draft_address)
        draft_info = await draft.wait_until_loaded(CONNECT_SECONDS)
        await _check_vocabularies(target_info, tokenizer, draft, draft_info)
        return cls(target, target_info, tokenizer, draft, draft_info)

    @property
    def draft_only_looks_up(self) -> bool:
        """Whether the draft has no model, and so no vocabulary."""
        return self.draft_info is not None and not self.draft_info.vocabulary_fingerprint

    @contextmanager
    def sessions(
        self,
        params: SamplingParams,
        speculate: bool,
        timeout: float | None,
        timeline: Timeline | None = None,
    ) -> Iterator[tuple[Verifier, Drafter | None]]:
        """A session on each service, closed at the end whatever happens."""
        verifier = self._target.open_session(params, self.target_info, timeout, timeline)
        drafter = None
        if speculate and self._draft is not None and self.draft_info is not None:
            drafter = self._draft.open_session(
                params, self.draft_info, self.target_info, timeout, timeline
            )
        try:
            yield verifier, drafter
        finally:
            verifier.close()
            if drafter is not None:
                drafter.close()

    async def current_info(self) -> tuple[ModelInfo, ModelInfo | None]:
        """What target and draft say now; no draft if it does not answer.

        Raises:
            OutriderError: the target does not answer.
        """
        target_info = await self._target.model_info(_INFO_SECONDS)
        if self._draft is None:
            return target_info, None
        try:
            return target_info, await self._draft.model_info(_INFO_SECONDS)
        except OutriderError:
            return target_info, None

    async def close(self) -> None:
        await self._target.close()
        if self._draft is not None:
            await self._draft.close()


async def _check_vocabularies(
    target_info: ModelInfo, tokenizer: Tokenizer, draft: DraftClient, draft_info: ModelInfo
) -> None:
    fingerprint = draft_info.vocabulary_fingerprint
    if fingerprint in ("", target_info.vocabulary_fingerprint):
        return
    draft_tokenizer = Tokenizer(await draft.tokenizer_files())
    check_compatible(target_info, draft_info, tokenizer.vocab, draft_tokenizer.vocab)
