"""Counts of the accept/correct loop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from itertools import zip_longest

from orchestrator.step import DraftSource, StepRecord


@dataclass
class Speculation:
    """Counts of steps with draft tokens, of one request or of many."""

    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    acceptance_histogram: list[int] = dataclasses.field(default_factory=list)
    length_histogram: list[int] = dataclasses.field(default_factory=list)
    """Entry k: steps with k draft tokens."""
    num_cache_hits: int = 0
    num_cache_hit_accepted_tokens: int = 0
    num_predrafted_tokens: int = 0
    num_lookup_steps: int = 0
    num_lookup_draft_tokens: int = 0
    num_lookup_accepted_tokens: int = 0
    num_pipelined_steps: int = 0
    num_stale_steps: int = 0
    num_cache_misses: int = 0

    def count(self, step: StepRecord) -> None:
        """Adds a step."""
        self.num_pipelined_steps += step.is_pipelined
        self.num_stale_steps += step.replaces_stale
        self.num_cache_misses += step.is_cache_miss and not step.num_draft_tokens
        self.num_predrafted_tokens = max(self.num_predrafted_tokens, step.num_predrafted_tokens)
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

    def add(self, other: Speculation) -> None:
        """Adds another's counts to these."""
        for field in fields(self):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            added = _add_counts(mine, others) if isinstance(mine, list) else mine + others
            setattr(self, field.name, added)

    @property
    def draft_acceptance_rate(self) -> float:
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        return 1 + self.num_accepted_tokens / self.num_steps if self.num_steps else 0.0

    def drafted_at(self, position: int) -> int:
        """Steps that had a draft token at this position, 0 being the first."""
        return sum(self.length_histogram[position + 1 :])

    def accepted_at(self, position: int) -> int:
        """Steps whose draft token at this position was accepted."""
        return sum(self.acceptance_histogram[position + 1 :])


def _add_counts(counts: list[int], others: list[int]) -> list[int]:
    return [a + b for a, b in zip_longest(counts, others, fillvalue=0)]
