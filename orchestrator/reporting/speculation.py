"""Counts of the decode loop."""

from dataclasses import dataclass, field

from orchestrator.step import DraftSource, DraftState, StepRecord
from outrider.protocol.messages import SpeculationStats


@dataclass
class Speculation(SpeculationStats):
    """Counts of steps with draft tokens, for one request or several."""

    length_histogram: list[int] = field(default_factory=list)
    """Entry k: steps with k draft tokens."""

    def count(self, step: StepRecord) -> None:
        """Adds a step."""
        self.num_pipelined_steps += step.is_pipelined
        self.num_stale_steps += step.replaces_stale
        self.num_cache_misses += step.is_cache_miss
        self.num_predrafted_tokens = max(self.num_predrafted_tokens, step.num_predrafted_tokens)
        if not step.is_prefill:
            self.num_idle_steps += step.draft_state is DraftState.IDLE
            self.num_active_steps += step.draft_state is DraftState.ACTIVE
        if step.num_draft_tokens == 0:
            return
        self.num_steps += 1
        self.num_draft_tokens += step.num_draft_tokens
        self.num_accepted_tokens += step.num_accepted_tokens
        if step.source is DraftSource.CACHED:
            self.num_cache_hits += 1
            self.num_cache_hit_accepted_tokens += step.num_accepted_tokens
        elif step.source is DraftSource.LOOKUP:
            self.num_lookup_steps += 1
            self.num_lookup_draft_tokens += step.num_draft_tokens
            self.num_lookup_accepted_tokens += step.num_accepted_tokens
        for histogram in (self.acceptance_histogram, self.length_histogram):
            histogram.extend([0] * (step.num_draft_tokens + 1 - len(histogram)))
        self.acceptance_histogram[step.num_accepted_tokens] += 1
        self.length_histogram[step.num_draft_tokens] += 1

    def drafted_at(self, position: int) -> int:
        """The number of steps with a draft token at this position, counted from 0."""
        return sum(self.length_histogram[position + 1 :])

    def accepted_at(self, position: int) -> int:
        """The number of steps whose draft token at this position was accepted."""
        return sum(self.acceptance_histogram[position + 1 :])
