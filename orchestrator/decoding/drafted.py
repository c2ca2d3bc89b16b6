"""Draft tokens, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.decoding.lookup import NOTHING, LookedUp
from orchestrator.policy.experience import StepCost
from outrider.protocol.messages import VerifyResult


@dataclass(frozen=True, slots=True)
class Drafted:
    """The draft tokens of one step; none where nothing was to be had."""

    token_ids: tuple[int, ...] = ()
    looked_up: LookedUp = NOTHING
    """The tokens, if they stood in the text before."""
    is_cache_hit: bool = False
    """Whether they were there before the result that they follow."""
    is_cache_miss: bool = False
    """Whether the draft had predrafted for other outcomes only. It was waited for or not."""
    is_pipelined: bool = False
    """Whether they went to the target before the result on the step before was known."""
    replaces_stale: bool = False
    """Whether others were sent ahead in their place, which assumed a wrong result."""
    catches_up: bool = False
    """Whether the draft was reading what it had missed, at rest or as a prompt."""
    waited_ns: int = 0
    """For the proposal; the reading of the prompt does not count."""
    awaited_ns: int = 0
    """For what was under way when the result came."""

    @property
    def was_looked_up(self) -> bool:
        return bool(self.looked_up.token_ids)

    @property
    def source(self) -> str:
        """Where the tokens came from."""
        if self.was_looked_up:
            return "looked up"
        return "predrafted" if self.is_cache_hit else "drafted"

    def cost(self, result: VerifyResult, verify_ns: int, draft_rests: bool) -> StepCost:
        """What the step took in which these tokens got that result.

        Args:
            verify_ns: for how long the loop waited for it.
            draft_rests: whether the draft had nothing to do meanwhile.
        """
        return StepCost(
            len(self.token_ids),
            result.num_accepted_tokens,
            self.waited_ns,
            verify_ns,
            is_cache_hit=self.is_cache_hit,
            match_length=self.looked_up.match_length,
            batch_tokens=result.timings.batch_tokens,
            batch_sessions=result.timings.batch_sessions,
            draft_rests=draft_rests,
            is_cache_miss=self.is_cache_miss,
            awaited_ns=self.awaited_ns,
            was_unasked=result.is_run_ahead,
            catches_up=self.catches_up,
            is_confirmed=self.looked_up.is_confirmed,
        )


NONE_DRAFTED = Drafted()
