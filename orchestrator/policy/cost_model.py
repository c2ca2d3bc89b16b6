"""The time and the tokens of steps, with and without a draft, as all texts of a pair observe."""

from bisect import bisect_left
from dataclasses import dataclass
from weakref import WeakSet

from orchestrator.policy.config import PolicyConfig
from orchestrator.policy.estimates import Acceptance, CostFilter, best_length, expected_tokens
from orchestrator.step import DraftSource, DraftState, StepRecord
from outrider.protocol.messages import PolicyEstimates

_PRIOR_HIT_RATE = 0.6

# Costs of a pass, of a token in it, of a predrafting draft, and of one whose predraft was a hit.
_PASS, _TOKEN, _PREDRAFTING, _HIT = range(4)

READING = (DraftState.PREFILLING, DraftState.CATCHING_UP)


@dataclass(frozen=True, slots=True)
class Plan:
    """The best draft lengths, and their expected goodput in tokens per nanosecond; 0: unknown."""

    goodput: float = 0.0
    predraft_length: int = 1
    miss_length: int = 1
    predrafts: bool = False
    """Whether the draft predrafts; otherwise the loop waits for it in each step."""


class PairState:
    """What all texts of a pair have learned together. Times are in nanoseconds.

    Args:
        token_ns: marginal cost of a token in the target's pass, measured at load; 0: unknown.
    """

    def __init__(self, token_ns: float = 0.0, config: PolicyConfig | None = None) -> None:
        self.config = config = config or PolicyConfig()
        errors = (1.0, 0.05 if token_ns else 0.2, 1.0, 1.0)
        self._pass = CostFilter(errors, (0.03, 0.003, 0.003, 0.003), token_ns)
        self.reset_draft()
        self.acceptance = Acceptance(config.prior_acceptance, config.prior_tokens, config.decay)
        self._num_sessions = 1.0  # that share a pass
        self.texts: WeakSet[object] = WeakSet()  # the policies of those that are being written
        self._hit_rate, self._pipelined_share = _PRIOR_HIT_RATE, 0.0
        self._num_ready = 0.0  # tokens that are predrafted in time; 0: unknown
        self._drafted_share = 1.0  # of the wanted length: a draft ends a proposal when it is unsure
        self.network_ns = self._server_ns = 0.0
        self.idle_ns = 0.0  # time of a step of the target alone, when last observed
        self.num_idle_steps, self.steps_since_probe = 0, 0.0
        self.probe_debt = 0.0  # tokens that probes have cost beyond their budget

    def reset_draft(self, token_ns: float = 0.0) -> None:
        """Forgets how long drafting took; `token_ns` is a draft token's time, 0: unknown."""
        # Costs of a proposal, and of each of its tokens.
        self._draft = CostFilter((0.5, 0.5), (0.03, 0.03), token_ns or None)

    @property
    def shares_passes(self) -> bool:
        """Whether passes have tokens of several texts, or would have without drafts."""
        return len(self.texts) >= 2 or self._num_sessions >= 2.0  # on average

    @property
    def has_high_latency(self) -> bool:
        return self.network_ns > self.config.high_latency_ns

    @property
    def runs_ahead(self) -> bool:
        """Whether the target, if it is alone, runs ahead, so that its steps do not wait for the
        network."""
        return self.shares_passes or self.has_high_latency

    @property
    def idle_goodput(self) -> float:
        """Tokens per nanosecond of the target alone."""
        network_ns = 0.0 if self.runs_ahead else self.network_ns
        return 1 / max(1.0, self._pass.costs[_PASS] + self.token_ns + network_ns)

    @property
    def token_ns(self) -> float:
        """Cost of one more draft token in each session that shares the forward pass."""
        return self._pass.costs[_TOKEN] * self._num_sessions

    def draft_ns(self, length: float) -> float:
        return self._draft.costs[0] + self._draft.costs[1] * length if length else 0.0

    def pipeline_wait_ns(self, is_pipelined: bool) -> float:
        """How long the next request may be held back without leaving the target idle.

        Counted from when the loop began to wait for the current result. Half a round trip is
        needed for the next request; a pipelined one has used up another half.
        """
        return self._server_ns - (self.network_ns if is_pipelined else 0.0)

    def observe(self, step: StepRecord, plan: Plan) -> None:
        """Learns from a step of any text, decided by `plan`."""
        waits_for_network = not (step.is_run_ahead or step.is_pipelined)
        if step.server_ns and not step.is_run_ahead:
            self._server_ns += 0.2 * (step.server_ns - self._server_ns)
            if waits_for_network:
                # A busy machine delays some results; the fastest one is close to the network.
                network_ns = max(1.0, step.verify_ns - step.server_ns)
                self.network_ns = min(network_ns, 1.2 * self.network_ns or network_ns)
        if step.is_prefill or step.draft_state in READING:
            return
        is_hit = step.source is DraftSource.CACHED
        num_sessions, share = max(1, step.batch_sessions), 1 - self.config.decay
        self._num_sessions += share * (num_sessions - self._num_sessions)
        if not (step.is_predrafting or step.num_draft_tokens):
            self.num_idle_steps += 1
            if self.idle_ns:  # what seems to have changed since may be the draft's cost
                self._pass.doubt(1 / self.idle_goodput - self.idle_ns)
        num_tokens = step.batch_tokens or 1 + step.num_draft_tokens
        counts = 1.0, num_tokens, step.is_predrafting, step.is_predrafting and is_hit
        took_ns = step.verify_ns + step.cache_wait_ns - self.network_ns * waits_for_network
        self._pass.observe(counts, max(1.0, took_ns), 1 / num_sessions)
        if step.is_predrafting:
            self._pipelined_share += share * (step.is_pipelined - self._pipelined_share)
        else:
            self.idle_ns = 1 / self.idle_goodput
            if step.draft_state is DraftState.ACTIVE:  # until predrafting seems worth a try
                for cost in (_PREDRAFTING, _HIT):
                    self._pass.forget(cost, self.config.exploration_share)
        if step.is_cache_miss or is_hit:
            self._hit_rate += share * (is_hit - self._hit_rate)
        if step.num_draft_tokens and not step.match_length:
            self.acceptance.observe(step)
        if is_hit:  # if all that was wanted is there, there might be more
            num_ready = step.num_draft_tokens + (step.num_draft_tokens >= plan.predraft_length)
            before = self._num_ready or num_ready
            self._num_ready = before + share * (num_ready - before)
        elif step.source is DraftSource.DRAFTED:
            self._draft.observe((1.0, step.num_draft_tokens), step.draft_ns)
            drafted_share = min(1.0, step.num_draft_tokens / max(1, plan.miss_length))
            self._drafted_share += share * (drafted_share - self._drafted_share)

    def plan(self, rate: float, goodput: float, predrafts: bool) -> Plan:
        """The best way to draft at an acceptance rate.

        It maximises tokens - `goodput` * time. If `goodput` is what these lengths achieve, no
        other lengths achieve more (W. Dinkelbach, 1967), so it is found by iterating.

        Args:
            rate: the acceptance rate.
            goodput: the previous estimate, in tokens per nanosecond.
            predrafts: whether the draft may predraft.
        """
        if not any(self._pass.costs):
            return Plan()
        plans = [self._predrafting(rate, goodput)] if predrafts else []
        # Texts that wait for the draft in turn meet in no pass: their steps do not show the loss.
        if not plans or not self.shares_passes:
            plans.append(self._sequential(rate, goodput, 1))
        return max(plans, key=lambda plan: plan.goodput)

    def _sequential(self, rate: float, goodput: float, shortest: int) -> Plan:
        """The best plan without predrafts, for proposals of at least `shortest` tokens."""
        draft_token_ns = self._draft.costs[1]
        price = goodput * self._drafted_share * (self.token_ns + draft_token_ns)
        length = max(shortest, best_length(rate, price) if draft_token_ns else 1)
        num_drafted = self._drafted_share * length
        ns = self._step_ns(num_drafted) + self.draft_ns(num_drafted)
        return Plan(expected_tokens(rate, length) / ns, max(1, length), length)

    def _predrafting(self, rate: float, goodput: float) -> Plan:
        """The best plan with predrafts. On a miss, the loop may wait for a proposal."""
        miss = self._sequential(rate, goodput, 0 if self._draft.costs[1] else 1)
        length = max(1, best_length(rate, goodput * self.token_ns))
        ready = min(float(length), self._num_ready or self._most_ready)
        miss_tokens = expected_tokens(rate, miss.miss_length)
        miss_ns = miss_tokens / miss.goodput
        tokens = miss_tokens + self._hit_rate * (expected_tokens(rate, ready) - miss_tokens)
        ns = miss_ns + self._hit_rate * (self._step_ns(ready) + self._pass.costs[_HIT] - miss_ns)
        ns += self._pass.costs[_PREDRAFTING] - self._pipelined_share * self.network_ns
        return Plan(tokens / max(1.0, ns), length, miss.miss_length, predrafts=True)

    @property
    def _most_ready(self) -> float:
        """How many tokens are predrafted in time if target and draft do not delay each other."""
        first_ns, token_ns = self._draft.costs
        return max(1.0, (1 / self.idle_goodput - first_ns) / token_ns) if token_ns else 1.0

    def _step_ns(self, num_draft_tokens: float) -> float:
        """A verification of so many draft tokens, without a concurrent draft."""
        num_tokens = 1 + num_draft_tokens
        return max(1.0, self._pass.costs[_PASS] + self.token_ns * num_tokens + self.network_ns)

    def estimates(self, rate: float, predrafts: bool) -> PolicyEstimates:
        """What it knows of the draft at an acceptance rate. See `plan`."""
        goodput = self.idle_goodput
        wanted = self.config.hysteresis * goodput
        percent = bisect_left(
            range(101), wanted, key=lambda rate: self.plan(rate / 100, goodput, predrafts).goodput
        )
        delays = self.plan(rate, goodput, predrafts).predrafts
        return PolicyEstimates(
            acceptance_rate=rate,
            sufficient_acceptance_rate=percent / 100,
            target_step_ns=round(1 / goodput),
            slowdown_ns=round(self._pass.costs[_PREDRAFTING]) if delays else 0,
            draft_token_ns=round(self.draft_ns(1)),
        )
