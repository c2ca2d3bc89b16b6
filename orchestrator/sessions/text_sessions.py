"""A text's sessions: with the target, and with the draft if it takes part."""

from collections.abc import Callable

from orchestrator.sessions.draft_session import DraftSession
from orchestrator.sessions.link import Link
from orchestrator.sessions.target_session import TargetSession
from outrider.errors import OutriderError


class TextSessions:
    """Both sessions of one text; the draft's is opened again where the draft was restarted.

    Args:
        open_drafter: opens a session with the draft if it can be used.
        link: to the draft.
    """

    def __init__(
        self,
        verifier: TargetSession,
        open_drafter: Callable[[], DraftSession | None],
        link: Link | None,
    ) -> None:
        self.verifier = verifier
        self.drafter = open_drafter()
        """None if the draft could not be used at the beginning."""
        self._open_drafter = open_drafter
        self._link = link
        self._num_outages = self._outages_over
        self._lost_for: OutriderError | None = None

    @property
    def draft_failure(self) -> OutriderError | None:
        """Why the draft was given up last; None if it never was."""
        now = None if self.drafter is None else self.drafter.given_up_for
        return now or self._lost_for

    def reopen_drafter(self) -> DraftSession | None:
        """A session in place of the one that was lost, if the draft was away since, and is back."""
        if self.drafter is None or self._outages_over == self._num_outages:
            return None
        if (drafter := self._open_drafter()) is None:
            return None
        self._lost_for, self._num_outages = self.draft_failure, self._outages_over
        self.drafter = drafter
        return drafter

    @property
    def _outages_over(self) -> int:
        return 0 if self._link is None else self._link.num_outages

    def close(self) -> None:
        self.verifier.close()
        if self.drafter is not None:
            self.drafter.close()
