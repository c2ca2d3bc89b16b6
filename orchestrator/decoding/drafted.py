"""Draft tokens, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.decoding.lookup import NOTHING, LookedUp
from orchestrator.policy.experience import StepCost
from outrider.protocol.messages import Verdict


@dataclass(frozen=True, slots=True)
class Drafted:
    """The draft tokens of one step; none where nothing was to be had."""

    token_ids: tuple[int, ...] = ()
    looked_up: LookedUp = NOTHING
    """The tokens, if they stood in the text before."""
    was_prepared: bool = False
    """Whether they were there before the verdict that they follow."""
    was_missed: bool = False
    """Whether the draft had prepared for other outcomes only. It was waited for or not."""
    was_sent_ahead: bool = False
    """Whether they went to the target before the verdict on the step before was known."""
    replaces_stale: bool = False
    """Whether others were sent ahead in their place, which assumed a wrong verdict."""
    catches_up: bool = False
    """Whether the draft was reading what it had missed, at rest or as a prompt."""
    waited_ns: int = 0
    """For the proposal; the reading of the prompt does not count."""
    awaited_ns: int = 0
    """For what was under way when the verdict came."""

    @property
    def was_looked_up(self) -> bool:
        return bool(self.looked_up.token_ids)

    @property
    def source(self) -> str:
        """Where the tokens came from."""
        if self.was_looked_up:
            return "looked up"
        return "prepared" if self.was_prepared else "drafted"

    def cost(self, verdict: Verdict, verify_ns: int, draft_rests: bool) -> StepCost:
        """What the step took in which these tokens got that verdict.

        Args:
            verify_ns: for how long the loop waited for it.
            draft_rests: whether the draft had nothing to do meanwhile.
        """
        return StepCost(
            len(self.token_ids),
            verdict.num_accepted_tokens,
            self.waited_ns,
            verify_ns,
            was_prepared=self.was_prepared,
            match_length=self.looked_up.match_length,
            batch_tokens=verdict.timings.batch_tokens,
            batch_sessions=verdict.timings.batch_sessions,
            draft_rests=draft_rests,
            was_missed=self.was_missed,
            awaited_ns=self.awaited_ns,
            was_unasked=verdict.is_more,
            catches_up=self.catches_up,
            is_confirmed=self.looked_up.is_confirmed,
        )


NONE_DRAFTED = Drafted()
