"""The time and the tokens of steps, with and without a draft, as all texts of a pair observe."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul

from orchestrator.policy.config import MAX_DRAFT_LENGTH, PolicyConfig
from orchestrator.step import DraftSource, DraftState, StepRecord
from outrider.protocol.messages import PolicyEstimates

READING = (DraftState.PREFILLING, DraftState.CATCHING_UP)


class CostFilter:
    """Estimates costs from observations of their sums.

    A Kalman filter (1960): the error of a predicted sum is distributed over the costs, most of it
    to the least certain ones. So the first difference between steps with and without the draft is
    attributed to the draft, and later changes among steps of one kind to the machine.

    Args:
        errors: initial standard deviation of each cost, as a share of the first observation.
        drifts: standard deviation of its change between two observations, as a share of the sum.
        slope: initial value of the second cost; None: the whole first observation is its.
    """

    def __init__(
        self, errors: Sequence[float], drifts: Sequence[float], slope: float | None
    ) -> None:
        self.costs = [0.0] * len(errors)
        self._errors, self._drifts, self._slope = errors, drifts, slope
        self._covariance: list[list[float]] = []

    def observe(self, counts: Sequence[float], took_ns: float, share: float = 1.0) -> None:
        """Learns from something that took `took_ns` and incurred cost i `counts[i]` times.

        `share` is the weight of the observation, below 1 if others report the same event.
        """
        if not self._covariance:
            slope = took_ns / counts[1] if self._slope is None else self._slope
            self.costs[:2] = max(0.0, took_ns - slope * counts[1]), slope
            self._covariance = [[0.0] * len(counts) for _ in counts]
            for i, error in enumerate(self._errors):
                self._covariance[i][i] = (error * took_ns / max(1.0, counts[i])) ** 2
        covariance, expected_ns = self._covariance, max(1.0, sum(map(mul, self.costs, counts)))
        for i, drift in enumerate(self._drifts):
            covariance[i][i] += share * (drift * expected_ns / max(1.0, counts[i])) ** 2
        spread = [sum(map(mul, row, counts)) for row in covariance]
        variance = sum(map(mul, spread, counts)) + (0.1 * expected_ns) ** 2 / share
        surprise_ns = took_ns - expected_ns
        # Beyond three standard deviations it counts less (P. J. Huber, 1964).
        variance *= max(1.0, abs(surprise_ns) / (3.0 * variance**0.5))
        for i, each in enumerate(spread):
            gain = each / variance
            self.costs[i] = max(0.0, self.costs[i] + gain * surprise_ns)
            covariance[i] = [a - gain * b for a, b in zip(covariance[i], spread, strict=True)]

    def doubt(self, ns: float) -> None:
        """Makes it uncertain by `ns` how the sum of the first and third cost is divided."""
        for i, j, sign in ((0, 0, 1), (2, 2, 1), (0, 2, -1), (2, 0, -1)):
            self._covariance[i][j] += sign * ns**2


@dataclass
class Acceptance:
    """An estimated acceptance rate, and the number of tokens, `weight`, that it is based on."""

    rate: float
    weight: float
    decay: float

    def observe(self, step: StepRecord) -> None:
        was_rejected = step.num_accepted_tokens < step.num_draft_tokens
        accepted = self.decay * self.weight * self.rate + step.num_accepted_tokens
        self.weight = self.decay * self.weight + step.num_accepted_tokens + was_rejected
        self.rate = accepted / self.weight


@dataclass(frozen=True, slots=True)
class Plan:
    """The best draft lengths, and their expected goodput in tokens per nanosecond; 0: unknown."""

    goodput: float = 0.0
    predraft_length: int = 1
    miss_length: int = 1


class PairState:
    """What all texts of a pair have learned together. Times are in nanoseconds.

    Args:
        token_ns: marginal cost of a token in the target's pass, measured at load; 0: unknown.
    """

    def __init__(self, token_ns: float = 0.0, config: PolicyConfig | None = None) -> None:
        self.config = config = config or PolicyConfig()
        # Costs of a pass, of a token in it, of a concurrently active draft, and of a cache hit.
        errors = (1.0, 0.05 if token_ns else 0.2, 1.0, 1.0)
        self._pass = CostFilter(errors, (0.03, 0.003, 0.003, 0.003), token_ns)
        self._draft = CostFilter((0.5, 0.5), (0.03, 0.03), None)  # a draft; each of its tokens
        # The most recent texts predict the next one best.
        self.acceptance = Acceptance(config.prior_acceptance, config.prior_tokens, config.decay**2)
        self._num_sessions = 1.0  # that share a pass
        self._miss_rate = 0.4
        self._num_ready = 1.0  # tokens that are predrafted in time
        self.network_ns = self._server_ns = 0.0
        self.idle_ns = 0.0  # time of a step of the target alone, when last observed
        self.num_idle_steps, self.steps_since_probe = 0, 0.0
        self.probe_debt = 0.0  # tokens that probes have cost beyond their budget

    @property
    def shares_passes(self) -> bool:
        return self._num_sessions >= self.config.many_sessions

    @property
    def has_high_latency(self) -> bool:
        return self.network_ns > self.config.high_latency_ns

    @property
    def idle_goodput(self) -> float:
        """Tokens per nanosecond of the target alone."""
        return 1 / max(1.0, self._pass.costs[0] + self.token_ns)

    @property
    def token_ns(self) -> float:
        """Cost of one more draft token in each session that shares the forward pass."""
        return self._pass.costs[1] * self._num_sessions

    def draft_ns(self, length: int) -> float:
        return self._draft.costs[0] + self._draft.costs[1] * length if length else 0.0

    def pipeline_wait_ns(self, is_pipelined: bool) -> float:
        """How long the next request may be held back without leaving the target idle.

        Counted from when the loop began to wait for the current result. Half a round trip is
        needed for the next request; a pipelined one has used up another half.
        """
        return self._server_ns - (self.network_ns if is_pipelined else 0.0)

    def observe(self, step: StepRecord, predraft_length: int) -> None:
        """Learns from a step of any text, unless it is of a rare kind."""
        if step.is_prefill:
            return
        if step.server_ns and not step.is_run_ahead:
            self._server_ns += 0.2 * (step.server_ns - self._server_ns)
            if not step.is_pipelined:
                # A busy machine delays some results; the fastest one is close to the network.
                network_ns = max(1.0, step.verify_ns - step.server_ns)
                self.network_ns = min(network_ns, 1.2 * self.network_ns or network_ns)
        is_active, is_hit = step.draft_state is DraftState.ACTIVE, step.source is DraftSource.CACHED
        is_idle = not is_active and not step.num_draft_tokens
        if step.draft_state in READING or (
            is_idle and self.has_high_latency and not step.is_run_ahead
        ):
            return  # with run-ahead, only a few steps wait for the network
        self.num_idle_steps += is_idle
        batch_tokens = step.batch_tokens or 1 + step.num_draft_tokens
        counts = (1.0, batch_tokens, is_active, is_active * is_hit)
        num_sessions, share = max(1, step.batch_sessions), 1 - self.config.decay
        if is_idle and self.idle_ns:  # what seems to have changed since may be the draft's cost
            self._pass.doubt(1 / self.idle_goodput - self.idle_ns)
        self._pass.observe(counts, step.verify_ns + step.cache_wait_ns, 1 / num_sessions)
        self._num_sessions += share * (num_sessions - self._num_sessions)
        self.idle_ns = self.idle_ns if is_active else 1 / self.idle_goodput
        if step.is_cache_miss or is_hit:
            self._miss_rate += share * (step.is_cache_miss - self._miss_rate)
        if step.num_draft_tokens and not step.match_length:
            self.acceptance.observe(step)
        if is_hit:  # if all that was wanted is there, there might be more
            num_ready = step.num_draft_tokens + (step.num_draft_tokens >= predraft_length)
            self._num_ready += share * (num_ready - self._num_ready)
        elif step.source is DraftSource.DRAFTED and step.num_draft_tokens:
            self._draft.observe((1.0, step.num_draft_tokens), step.draft_ns)
        elif step.is_cache_miss:  # what waiting would take may have changed
            self._draft.costs = [self.config.decay**2 * cost for cost in self._draft.costs]

    def plan(self, rate: float, goodput: float, predrafts: bool) -> Plan:
        """The best draft lengths at an acceptance rate.

        They maximise tokens - `goodput` * time. If `goodput` is what these lengths achieve, no
        other lengths achieve more (W. Dinkelbach, 1967), so it is found by iterating.

        Args:
            rate: the acceptance rate.
            goodput: the previous estimate, in tokens per nanosecond.
            predrafts: whether the draft predrafts.
        """
        if not any(self._pass.costs):
            return Plan()
        token_ns, draft_token_ns = self.token_ns, self._draft.costs[1]
        work_ns = 1 / self.idle_goodput + self._pass.costs[2]
        shortest = 0 if predrafts and draft_token_ns else 1
        longest = best_length(rate, goodput * (token_ns + draft_token_ns)) if draft_token_ns else 1
        miss_length = max(
            (shortest, max(shortest, longest)),
            key=lambda k: expected_tokens(rate, k) - goodput * (token_ns * k + self.draft_ns(k)),
        )
        tokens = expected_tokens(rate, miss_length)
        ns = work_ns + token_ns * miss_length + self.draft_ns(miss_length)
        predraft_length = max(1, best_length(rate, goodput * token_ns))
        if predrafts:
            hit_length = min(predraft_length, self._num_ready)
            hit_ns = work_ns + self._pass.costs[3] + token_ns * hit_length
            tokens += (1 - self._miss_rate) * (expected_tokens(rate, hit_length) - tokens)
            ns += (1 - self._miss_rate) * (hit_ns - ns)
        return Plan(tokens / max(1.0, ns), predraft_length, miss_length)

    def estimates(self, rate: float, predrafts: bool) -> PolicyEstimates:
        """What it knows of the draft at an acceptance rate. See `plan`."""
        goodput = self.idle_goodput
        wanted = self.config.hysteresis * goodput
        percent = bisect_left(
            range(101), wanted, key=lambda rate: self.plan(rate / 100, goodput, predrafts).goodput
        )
        return PolicyEstimates(
            acceptance_rate=rate,
            sufficient_acceptance_rate=percent / 100,
            target_step_ns=round(1 / goodput),
            slowdown_ns=round(self._pass.costs[2]),
            draft_token_ns=round(self.draft_ns(1)),
        )


def best_length(rate: float, price: float) -> int:
    """The length of the longest draft whose last token is accepted with probability > `price`."""
    length, gain = 0, rate
    while length < MAX_DRAFT_LENGTH and gain > price:
        length, gain = length + 1, gain * rate
    return length


def expected_tokens(rate: float, length: float) -> float:
    """The expected number of committed tokens of a step (arXiv 2211.17192)."""
    rate = min(rate, 0.999)
    return float((1 - rate ** (length + 1)) / (1 - rate))
