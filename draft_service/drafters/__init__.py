"""Drafters, which propose tokens: by a small model, or by a recorded text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from outrider.engine.activity import ModelActivity
from outrider.protocol.messages import Predraft, PredraftPlan, Proposal, SamplingParams

OnPredrafts = Callable[[list[Predraft]], None]
"""Called on the event loop with predrafts that are new or have grown."""


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
            num_speculative_tokens: the most tokens; 0 only brings the sequence up to date.
            vocab_size: if given, only ids below it are proposed.

        Raises:
            ContextMismatch, InvalidToken, ContextTooLong, InvalidRequest: nothing has changed.
        """
        ...

    def predraft(
        self, num_draft_tokens: int, predraft_plan: PredraftPlan, on_predrafts: OnPredrafts
    ) -> None:
        """Predrafts in the background, until the next `propose`.

        Args:
            num_draft_tokens: how many tokens at the sequence's end, the proposal included,
                are under verification now.
        """
        ...

    def close(self) -> None: ...


class Drafter(Protocol):
    """Opens sessions, as many as its slots allow."""

    @property
    def num_free_slots(self) -> int: ...

    def activity(self) -> ModelActivity:
        """The activity at this moment, for metrics."""
        ...

    def check(self) -> None:
        """Raises EngineFailed if the engine has failed. Is called once a second."""
        ...

    def open_session(self) -> DrafterSession:
        """Raises NoFreeSlot."""
        ...

    def close(self) -> None: ...
