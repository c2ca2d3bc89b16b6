"""The target and the draft of an orchestrator."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress

from orchestrator.policy.cost_model import PairState
from orchestrator.reporting.timeline import Timeline
from orchestrator.sessions.clients import DraftClient, TargetClient
from orchestrator.sessions.hidden_state_window import check_gives
from orchestrator.sessions.link import Link
from orchestrator.sessions.text_sessions import TextSessions
from orchestrator.text.tokenizer import Tokenizer
from orchestrator.text.vocabulary import check_compatible
from outrider.errors import (
    OutriderError,
    ServiceUnavailable,
    UnsupportedModel,
    VocabularyMismatch,
)
from outrider.protocol.messages import ModelInfo, Outage, SamplingParams, TokenizerFiles

# A service may still download its model.
CONNECT_SECONDS = 900.0

_INFO_SECONDS = 1.0


class Pair:
    """A target, its tokenizer and, optionally, a draft with the same vocabulary, which may be
    unavailable at times."""

    def __init__(
        self,
        target: TargetClient,
        target_info: ModelInfo,
        tokenizer: Tokenizer,
        draft: DraftClient | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.policy_state = PairState(token_ns=target_info.token_ns)
        self.target_link = Link(target, self._accept_target)
        self.draft_link = None if draft is None else Link(draft, self._accept_draft)
        self.target_info = target_info
        """The target's last answer that had the same vocabulary."""
        self.on_target: Callable[[ModelInfo], None] = lambda info: None
        """Called with each answer of the target, which may have restarted with other settings."""
        self._target = target
        self._draft = draft
        self._compared: str | None = None  # the fingerprint of the draft's vocabulary
        self._mismatch = ""  # what differs in it, if anything does

    @classmethod
    async def connect(
        cls,
        target_address: str,
        draft_address: str | None,
        waiting: Callable[[ServiceUnavailable], None] = lambda why: None,
    ) -> "Pair":
        """Waits for the target. If the draft answers, checks that it is compatible.

        Calls `waiting` with why the target cannot be used yet.

        Raises:
            OutriderError: the target does not answer, or its tokenizer cannot be read; or the
                draft's address belongs to another service.
            VocabularyMismatch: their vocabularies differ.
            HiddenStateMismatch: the draft reads hidden states that the target does not provide.
        """
        async with AsyncExitStack() as opened:
            target = TargetClient(target_address)
            opened.push_async_callback(target.close)
            target_info = await target.wait_until_loaded(CONNECT_SECONDS, waiting)
            tokenizer = Tokenizer(await target.tokenizer_files())
            draft = None
            if draft_address is not None:
                draft = DraftClient(draft_address)
                opened.push_async_callback(draft.close)
            pair = cls(target, target_info, tokenizer, draft)
            if pair.draft_link is not None:
                with suppress(ServiceUnavailable):  # it joins when it comes
                    await pair.draft_link.look()
                pair.draft_link.watch()
            pair.target_link.watch()
            opened.pop_all()  # `close` closes them
        return pair

    @property
    def draft_info(self) -> ModelInfo | None:
        """The draft's last answer; None while no draft can be used."""
        return None if self.draft_link is None else self.draft_link.usable

    @property
    def draft_outage(self) -> Outage | None:
        """Why the configured draft cannot be used."""
        return None if self.draft_link is None else self.draft_link.outage

    def check(self) -> None:
        """Raises ServiceUnavailable if the target cannot be used."""
        self.target_link.check()

    @contextmanager
    def sessions(
        self,
        params: SamplingParams,
        speculate: bool,
        timeout: float | None,
        timeline: Timeline | None = None,
        max_length: int = 0,
    ) -> Iterator[TextSessions]:
        """Context manager: a session on each service, closed at the end in any case.

        Args:
            max_length: of the text, in tokens; the services reserve it. 0: the longest text.
        """
        link = self.draft_link if speculate else None
        sessions = TextSessions(
            self._target, self.target_info, self._draft, link, params, timeout, timeline, max_length
        )
        try:
            yield sessions
        finally:
            sessions.close()

    async def current_info(self) -> tuple[ModelInfo, ModelInfo | None]:
        """Queries target and draft; None for a draft that does not answer.

        Raises:
            OutriderError: the target does not answer.
        """
        target_info = await self.target_link.look(_INFO_SECONDS)
        if self.draft_link is not None:
            with suppress(OutriderError):
                await self.draft_link.look(_INFO_SECONDS)
        return target_info, self.draft_info

    async def close(self) -> None:
        await self.target_link.close()
        if self.draft_link is not None:
            await self.draft_link.close()

    async def _accept_target(self, info: ModelInfo) -> None:
        """Raises VocabularyMismatch if the target serves another vocabulary than before."""
        if info.vocabulary_fingerprint != self.target_info.vocabulary_fingerprint:
            raise VocabularyMismatch(
                "the target serves another vocabulary than it did when the orchestrator started; "
                "restart the orchestrator"
            )
        self.target_info = info
        self.on_target(info)

    async def _accept_draft(self, info: ModelInfo) -> None:
        """Raises VocabularyMismatch, HiddenStateMismatch.

        Compares vocabularies once for each of the draft's.
        """
        assert self._draft is not None
        fingerprint = info.vocabulary_fingerprint
        if fingerprint != self._compared:
            self._mismatch = ""
            if fingerprint != self.target_info.vocabulary_fingerprint:
                files = await self._draft.tokenizer_files()
                self._mismatch = await asyncio.to_thread(self._find_mismatch, info, files)
            self._compared = fingerprint
            self.policy_state.reset_draft(info.step_ns)
        if self._mismatch:
            raise VocabularyMismatch(self._mismatch)
        check_gives(self.target_info, info)

    def _find_mismatch(self, draft: ModelInfo, files: TokenizerFiles) -> str:
        try:
            check_compatible(self.target_info, draft, self.tokenizer.vocab, Tokenizer(files).vocab)
        except (UnsupportedModel, VocabularyMismatch) as error:
            return error.message
        return ""
