"""The simplest policy: the same draft length at every step; 0: the target alone."""

from dataclasses import dataclass

from orchestrator.policy.cost_model import PairState
from orchestrator.policy.draft_policy import Decision, StepContext
from orchestrator.step import StepRecord


@dataclass(frozen=True)
class FixedLength:
    """For one text; what its steps show serves others."""

    pair: PairState
    length: int

    def decide(self, context: StepContext) -> Decision:
        pair, length = self.pair, self.length
        is_alone = length == 0 or not context.has_draft
        return Decision(
            drafts=length > 0,
            predraft_length=length,
            miss_length=length,
            cache_wait_ns=pair.draft_ns(1),  # asking takes no less
            lookup_length=length,
            confirmed_lookup_length=length,
            acceptance_rate=pair.acceptance.rate,
            runs_ahead=is_alone and (pair.shares_passes or pair.has_high_latency),
            pipelines=length > 0 and pair.has_high_latency,
            pipeline_wait_ns=pair.pipeline_wait_ns(context.is_pipelined),
        )

    def observe(self, step: StepRecord) -> None:
        self.pair.observe(step, self.length)
