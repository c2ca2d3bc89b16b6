"""The adaptive policy: it drafts where that raises goodput."""

from orchestrator.policy.cost_model import READING, PairState, Plan
from orchestrator.policy.draft_policy import Decision, StepContext
from orchestrator.policy.estimates import Acceptance, best_length
from orchestrator.step import DraftState, StepRecord
from outrider.protocol.messages import PolicyEstimates

_NO_DRAFT = Plan(0.0, 0, 0)


class AdaptivePolicy:
    """Decides for one text whether and how much to draft, by goodput (arXiv 2406.14066).

    After each step it chooses the draft lengths with the highest expected goodput, from this
    text's acceptance rate and the times that all texts of the pair have observed. The draft works
    if that beats the target alone. From time to time a probe tries the opposite choice; probes are
    budgeted for the pair, not for each text.

    Args:
        pair: what all texts of the pair have learned, shared with their policies.
        predrafts: whether the draft may work while the target verifies.
    """

    def __init__(self, pair: PairState, predrafts: bool = True) -> None:
        self._pair, self._config, self._predrafts = pair, pair.config, predrafts
        self._acceptance, self._lookup = (
            Acceptance(rate, pair.config.prior_tokens, pair.config.decay)
            for rate in (pair.acceptance.rate, pair.config.prior_acceptance)
        )
        pair.texts.add(self)
        self._probe_steps = 0  # left of the current probe
        self._plan = Plan()
        self._choose(hysteresis=1.0)

    def _choose(self, hysteresis: float) -> None:
        idle_goodput = self._pair.idle_goodput
        goodput = max(idle_goodput, self._plan.goodput)  # tokens that a nanosecond is worth
        # A draft that may be good is worth a few steps more: a text may suit it better than others.
        rate = self._acceptance.bound(self._config.optimism)
        self._plan = self._pair.plan(rate, goodput, self._predrafts)
        is_unknown = self._plan.goodput == 0.0
        self._drafts = is_unknown or self._plan.goodput >= hysteresis * idle_goodput
        self._goodput = max(idle_goodput, self._plan.goodput)

    def decide(self, context: StepContext) -> Decision:
        pair, rate = self._pair, self._acceptance.rate
        is_usable, is_reading = context.has_draft, context.draft in READING
        if is_usable and not is_reading and self._probe_steps == 0 and self._is_probe_due():
            self._begin_probe()
        drafts = is_usable and self._drafts != (self._probe_steps > 0)
        plan = self._plan if drafts else _NO_DRAFT
        price = self._goodput * pair.token_ns
        # A shared forward pass is never interrupted for looked-up tokens.
        lookup_price = 1.0 if context.is_running_ahead and pair.shares_passes else price
        return Decision(
            drafts=drafts,
            predrafts=plan.predrafts,
            predraft_length=plan.predraft_length,
            miss_length=plan.miss_length,
            cache_wait_ns=max(0.0, rate - price) / self._goodput,
            lookup_length=best_length(self._lookup.rate, lookup_price),
            shortest_lookup=self._config.shortest_interruption if context.is_running_ahead else 1,
            acceptance_rate=rate,
            keeps_up=is_usable and self._drafts,
            runs_ahead=pair.runs_ahead and (is_reading or not drafts),
            pipelines=drafts and pair.has_high_latency,
            pipeline_wait_ns=pair.pipeline_wait_ns(context.is_pipelined),
        )

    def observe(self, step: StepRecord) -> None:
        self._pair.observe(step, self._plan)
        if step.num_draft_tokens:
            (self._lookup if step.match_length else self._acceptance).observe(step)
        if step.is_prefill or step.draft_state in (DraftState.ABSENT, DraftState.LOST):
            return
        self._count(step)
        drafted = self._drafts
        self._choose(hysteresis=1.0 if drafted else self._config.hysteresis)
        if self._drafts != drafted:
            self._probe_steps = 0

    def estimates(self) -> PolicyEstimates | None:
        if self._plan.goodput == 0.0:
            return None
        return self._pair.estimates(self._acceptance.rate, self._predrafts)

    def _is_probe_due(self) -> bool:
        pair, config, num_steps = self._pair, self._config, self._pair.steps_since_probe
        worse, better = sorted((pair.idle_goodput, self._plan.goodput))
        interval = max(1.0, config.probe_steps * (1 - worse / better)) / config.exploration_share
        if not self._drafts:
            return num_steps >= interval and pair.probe_debt <= 0
        if 0 < self._goodput * pair.idle_ns < 1:  # the target alone was faster when last seen
            return num_steps >= config.probe_steps
        # A single step of the target alone may be an outlier: the first probes are close together.
        return num_steps >= min(interval, config.probe_steps * pair.num_idle_steps**2)

    def _begin_probe(self) -> None:
        self._pair.steps_since_probe = 0
        # The first step with a draft is slower than the following ones.
        self._probe_steps = 1 if self._drafts else self._config.probe_steps

    def _count(self, step: StepRecord) -> None:
        """Counts the step. If it was part of a probe, or the draft was reading, adds the tokens
        that this has cost to the debt."""
        pair, num_tokens = self._pair, len(step.token_ids)
        is_idle, is_reading = step.draft_state is DraftState.IDLE, step.draft_state in READING
        share = 1 / max(1, step.batch_sessions)  # the other sessions count the same pass
        debt = pair.probe_debt - share * self._config.exploration_share * num_tokens
        if pair.idle_ns and (is_reading or not (is_idle or self._drafts)):
            lost = step.ns / pair.idle_ns - num_tokens
            debt += min(lost, 2 * self._config.probe_steps)  # anything may delay a step
        pair.probe_debt = max(0.0, debt)
        if not is_reading:
            pair.steps_since_probe += share
            self._probe_steps -= self._probe_steps > 0 and is_idle == self._drafts
