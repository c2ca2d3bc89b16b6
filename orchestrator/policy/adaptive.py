"""The policy that learns: it drafts where that commits more tokens per time."""

from __future__ import annotations

from orchestrator.policy.cost_model import READING, Acceptance, PairState, Plan, best_length
from orchestrator.policy.draft_policy import Decision, StepContext
from orchestrator.step import DraftState, StepRecord

_UNUSABLE = (DraftState.ABSENT, DraftState.LOST)


class AdaptivePolicy:
    """For one text: has the draft work, and chooses lengths, by goodput (arXiv 2406.14066).

    Now and then it probes the other choice, for all texts of the pair.

    Args:
        predrafts: the draft works while the target verifies.
    """

    def __init__(self, pair: PairState, predrafts: bool = True) -> None:
        self._pair, self._config, self._predrafts = pair, pair.config, predrafts
        self._acceptance = self._prior(pair.acceptance.rate)
        rejected = 1 - self._config.lookup_acceptance
        self._lookups = self._prior(1 - rejected)
        # The text and the draft say the same for different reasons.
        self._confirmed_lookups = self._prior(1 - rejected * (1 - self._config.prior_acceptance))
        self._is_beginning = True
        self._probe_steps = 0  # that are left of one
        self._plan = Plan()
        self._choose(hysteresis=1.0)

    def _prior(self, rate: float) -> Acceptance:
        return Acceptance(rate, self._config.prior_tokens, self._config.decay)

    def _choose(self, hysteresis: float) -> None:
        """Whether drafting is worth it, and what time is worth then."""
        idle_goodput = self._pair.idle_goodput
        goodput = max(idle_goodput, self._plan.goodput)
        self._plan = self._pair.plan(self._acceptance.rate, goodput, self._predrafts)
        is_unknown = self._plan.goodput == 0.0
        self._drafts = is_unknown or self._plan.goodput >= hysteresis * idle_goodput
        self._goodput = max(idle_goodput, self._plan.goodput)

    def decide(self, context: StepContext) -> Decision:
        pair, config, rate = self._pair, self._config, self._acceptance.rate
        is_usable = context.draft not in _UNUSABLE
        if is_usable and context.draft not in READING and self._is_probe_due():
            self._begin_probe()
        self._is_beginning = False
        drafts = is_usable and self._drafts != (self._probe_steps > 0)
        plan = self._plan if drafts else Plan(0.0, 0, 0)
        token_price = self._goodput * pair.token_ns
        # To interrupt a pass that others share, too, is never worth it.
        looks_up = not (context.is_running_ahead and pair.shares_passes)
        return Decision(
            draft_length=max(int(drafts), plan.miss_length),
            predraft_length=plan.predraft_length,
            miss_length=plan.miss_length,
            cache_wait_ns=max(0.0, (rate - token_price) / self._goodput) if drafts else 0.0,
            lookup_length=looks_up * best_length(self._lookups.rate, token_price),
            confirmed_lookup_length=looks_up
            * best_length(self._confirmed_lookups.rate, token_price),
            shortest_lookup=config.shortest_interruption if context.is_running_ahead else 1,
            acceptance_rate=rate,
            keeps_up=is_usable and self._drafts,
            runs_ahead=not drafts and pair.favors_run_ahead,
            pipelines=drafts and self._predrafts and pair.has_high_latency,
            pipeline_wait_ns=pair.pipeline_wait_ns(context.is_pipelined),
        )

    def observe(self, step: StepRecord) -> None:
        if step.is_prefill:
            return
        self._pair.observe(step, self._plan.predraft_length)
        if step.match_length:
            (self._confirmed_lookups if step.is_confirmed else self._lookups).observe(step)
        elif step.num_draft_tokens:
            self._acceptance.observe(step)
        if step.draft_state in _UNUSABLE:
            return
        self._count(step)
        drafted = self._drafts
        self._choose(hysteresis=1.0 if drafted else self._config.hysteresis)
        if self._drafts != drafted:
            self._probe_steps = 0

    def _is_probe_due(self) -> bool:
        pair, config = self._pair, self._config
        if self._probe_steps:
            return False
        if not self._drafts:
            # Most texts begin sooner, and the draft reads the prompt while the target does.
            factor = 1 if self._is_beginning else 2
            is_late = pair.steps_since_probe >= factor * config.probe_interval
            return is_late and pair.probe_debt <= 0
        if pair.num_idle_steps and self._goodput * pair.idle_ns < 1:
            # Drafting seems slower than the target alone was: because of the draft, or the machine?
            return pair.steps_since_probe >= config.probe_steps
        cost = config.probe_steps * (1 - pair.idle_goodput / self._goodput)
        interval = max(config.probe_interval, cost / config.exploration_share)
        # A step of the target alone may be disturbed, so the first ones are close together.
        return pair.steps_since_probe >= min(config.probe_steps * pair.num_idle_steps**2, interval)

    def _begin_probe(self) -> None:
        pair = self._pair
        pair.steps_since_probe = 0
        pair.draft_is_stale |= self._drafts
        needs_many = pair.has_high_latency if self._drafts else self._predrafts
        self._probe_steps = self._config.probe_steps if needs_many else 1

    def _count(self, step: StepRecord) -> None:
        """Counts a step of a probe, or between two, and what the draft has cost."""
        pair, is_idle = self._pair, step.draft_state is DraftState.IDLE
        debt = pair.probe_debt - self._config.exploration_share * len(step.token_ids)
        if not is_idle and pair.idle_ns:
            lost = step.ns / pair.idle_ns - len(step.token_ids)
            debt += min(lost, 2 * self._config.probe_steps)  # anything may delay a step
        pair.probe_debt = max(0.0, debt)
        if step.draft_state not in READING:
            pair.steps_since_probe += 1
            self._probe_steps -= self._probe_steps > 0 and is_idle == self._drafts
