"""Ways to propose tokens: by a small model, or by a recorded text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from outrider.engine.activity import ModelActivity
from outrider.protocol.messages import Predraft, PredraftPlan, Proposal, SamplingParams

OnPredrafts = Callable[[list[Predraft]], None]
"""Called on the event loop with continuations that have grown."""


class DrafterSession(Protocol):
    """One client's sequence. Close it to give its slots back."""

    async def propose(
        self,
        context_length: int,
        token_ids: Sequence[int],
        num_speculative_tokens: int,
        params: SamplingParams,
        vocab_size: int | None,
    ) -> Proposal:
        """Keeps `context_length` tokens, appends `token_ids`, proposes what may follow.

        Args:
            num_speculative_tokens: at most so many; 0 only brings the sequence up to date.
            vocab_size: propose only ids below it, where given.

        Raises:
            ContextMismatch, InvalidToken, ContextTooLong, InvalidRequest: nothing has changed.
        """
        ...

    def predraft(
        self, num_draft_tokens: int, predraft_plan: PredraftPlan, on_predrafts: OnPredrafts
    ) -> None:
        """Drafts on past the proposal, in the background, until the next `propose`.

        Args:
            num_draft_tokens: how many tokens at the sequence's end, the proposal included,
                are under verification now.
        """
        ...

    def close(self) -> None: ...


class Drafter(Protocol):
    """Opens sessions, as many as there are slots."""

    @property
    def num_free_slots(self) -> int: ...

    def activity(self) -> ModelActivity:
        """What it does at this moment, for metrics."""
        ...

    def check(self) -> None:
        """Raises EngineFailed if it will propose nothing more. Is called once a second."""
        ...

    def open_session(self) -> DrafterSession:
        """Raises NoFreeSlot."""
        ...

    def close(self) -> None: ...
