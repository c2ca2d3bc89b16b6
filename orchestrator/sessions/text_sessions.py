"""The sessions of one text: with the target and, if it is used, with the draft."""

from collections.abc import Callable

from orchestrator.reporting.timeline import Timeline
from orchestrator.sessions.clients import DraftClient, TargetClient
from orchestrator.sessions.draft_session import DraftSession
from orchestrator.sessions.hidden_state_window import HiddenStateWindow
from orchestrator.sessions.link import Link
from outrider.errors import IdleTimeout, OutriderError
from outrider.protocol.messages import ModelInfo, SamplingParams


class TextSessions:
    """Both sessions of one text. The draft's is reopened when a lost draft is available again.

    Args:
        draft, link: of the draft; None if the text is to be generated without one.
    """

    def __init__(
        self,
        target: TargetClient,
        target_info: ModelInfo,
        draft: DraftClient | None,
        link: Link | None,
        params: SamplingParams,
        timeout: float | None,
        timeline: Timeline | None,
        max_length: int = 0,
    ) -> None:
        self.drafter: DraftSession | None = None
        """None if the draft could not be used when the text began."""
        self._link = link
        self._num_outages = 0  # those that were over when the session was opened
        self._lost_for: OutriderError | None = None
        info = None if link is None else link.usable
        self._reads = None if info is None else info.reads_hidden_states
        window = None
        if self._reads is not None:
            window = HiddenStateWindow(self._reads.of_target(target_info.num_layers))
        self.verifier = target.open_session(
            params, target_info, timeout, timeline, window, max_length
        )
        if draft is not None and link is not None and info is not None:
            self._open_drafter: Callable[[ModelInfo], DraftSession] = lambda info: (
                draft.open_session(params, info, target_info, timeout, timeline, window, max_length)
            )
            self._open(link, info)

    @property
    def draft_failure(self) -> OutriderError | None:
        """Why the draft was abandoned most recently; None if it never was."""
        now = None if self.drafter is None else self.drafter.given_up_for
        return now or self._lost_for

    def reopen_drafter(self) -> DraftSession | None:
        """A new session in place of a lost one; None while there is no reason to try.

        There is if the draft was unavailable and is available again, or if the draft service closed
        the session because it was idle for too long.
        """
        link = self._link
        if self.drafter is None or link is None:
            return None
        was_away = link.num_outages > self._num_outages
        if not was_away and not isinstance(self.drafter.given_up_for, IdleTimeout):
            return None
        info = link.usable
        # The target gives the hidden states that it was asked for when the text began.
        if info is None or info.reads_hidden_states != self._reads:
            return None
        self._lost_for = self.draft_failure
        return self._open(link, info)

    def _open(self, link: Link, info: ModelInfo) -> DraftSession:
        self._num_outages = link.num_outages
        self.drafter = self._open_drafter(info)
        return self.drafter

    def close(self) -> None:
        self.verifier.close()
        if self.drafter is not None:
            self.drafter.close()
