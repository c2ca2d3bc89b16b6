"""The simplest policy: the same draft length at every step."""

from __future__ import annotations

from orchestrator.policy.cost_model import Acceptance, PairState
from orchestrator.policy.draft_policy import Decision, StepContext
from orchestrator.step import StepRecord


class FixedLength:
    """For one text; what its steps show serves other texts.

    Args:
        length: 0: the target alone.
    """

    def __init__(self, pair: PairState, length: int) -> None:
        self._pair, self._length = pair, length
        config = pair.config
        self._acceptance = Acceptance(pair.acceptance.rate, config.prior_tokens, config.decay)

    def decide(self, context: StepContext) -> Decision:
        pair, length = self._pair, self._length
        return Decision(
            draft_length=length,
            predraft_length=length,
            miss_length=length,
            cache_wait_ns=pair.draft_ns(1),  # to ask takes no less
            lookup_length=length,
            confirmed_lookup_length=length,
            acceptance_rate=self._acceptance.rate,
            runs_ahead=length == 0 and pair.favors_run_ahead,
            pipelines=length > 0 and pair.has_high_latency,
            pipeline_wait_ns=pair.pipeline_wait_ns(context.is_pipelined),
        )

    def observe(self, step: StepRecord) -> None:
        if step.is_prefill:
            return
        self._pair.observe(step, self._length)
        if step.num_draft_tokens and not step.match_length:
            self._acceptance.observe(step)
