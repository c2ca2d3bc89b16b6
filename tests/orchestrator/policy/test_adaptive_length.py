from __future__ import annotations

import itertools
import random

import pytest

from orchestrator.policy.adaptive_length import AdaptiveLength
from orchestrator.policy.draft_length import FixedLength
from orchestrator.policy.experience import Experience, Line, StepCost
from orchestrator.policy.pass_time import Beside


class Pair:
    """A pair of models with given costs (ms) and acceptance, as the policy meets it."""

    def __init__(self, acceptance: float, draft: float, verify: float, per_token: float = 0.0):
        self.acceptance, self.draft, self.verify = acceptance, draft, verify
        self.per_token = per_token
        self._random = random.Random(0)

    def step(self, length: int) -> StepCost:
        accepted = 0
        while accepted < length and self._random.random() < self.acceptance:
            accepted += 1
        noise = self._random.uniform(0.9, 1.1)
        return StepCost(
            length,
            accepted,
            int(1e6 * noise * self.draft * length),
            int(1e6 * noise * (self.verify + self.per_token * length)),
            draft_rests=length == 0,
        )

    def tokens_per_ms(self, lengths: list[int]) -> float:
        steps = [self.step(length) for length in lengths]
        tokens = sum(1 + step.num_accepted_tokens for step in steps)
        return tokens / sum((step.draft_ns + step.verify_ns) / 1e6 for step in steps)


def lengths(pair: Pair, policy: AdaptiveLength, num_steps: int = 200) -> list[int]:
    chosen = []
    for _ in range(num_steps):
        chosen.append(policy.next_length())
        policy.observe(pair.step(chosen[-1]))
    return chosen


@pytest.mark.parametrize(
    ("pair", "low", "high"),
    [
        (Pair(0.95, draft=1, verify=30), 8, 16),
        (Pair(0.8, draft=4, verify=24), 3, 6),
        (Pair(0.6, draft=10, verify=40, per_token=2), 1, 2),
        (Pair(0.6, draft=50, verify=40), 0, 0),
        (Pair(0.0, draft=5, verify=40), 0, 0),
    ],
)
def test_the_length_goes_where_it_pays(pair: Pair, low: int, high: int) -> None:
    late = lengths(pair, AdaptiveLength(Experience()))[60:]
    assert low <= sorted(late)[len(late) // 2] <= high


def test_it_moves_by_little() -> None:
    chosen = lengths(Pair(0.95, 1, 30), AdaptiveLength(Experience()))
    moves = [abs(a - b) for a, b in itertools.pairwise(chosen) if a and b]  # probes aside
    assert 0 < max(moves) <= 2


@pytest.mark.parametrize("draft", [20, 40, 160])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6])
def test_a_draft_that_does_not_pay_costs_next_to_nothing(acceptance: float, draft: float) -> None:
    pair, policy = Pair(acceptance * draft / 40, draft, verify=40), AdaptiveLength(Experience())
    lengths(pair, policy, 100)
    chosen = lengths(pair, policy, 1000)
    assert pair.tokens_per_ms(chosen) > 0.98 * pair.tokens_per_ms([0] * 1000)
    assert 0 < sum(length > 0 for length in chosen) < 35


def test_the_more_probes_cost_the_rarer_they_are() -> None:
    apart = []
    for draft in (10, 40, 160):
        policy = AdaptiveLength(Experience())
        chosen = lengths(Pair(0.0, draft, 40), policy, 1000)
        probes = [step for step, length in enumerate(chosen) if length]
        apart.append(probes[-1] - probes[-2])
    assert apart[0] < 40
    assert 60 < apart[1] < 140
    assert apart[2] > 200


@pytest.mark.parametrize("draft", [2, 40])
def test_a_draft_that_has_become_good_is_found_out(draft: float) -> None:
    policy = AdaptiveLength(Experience())
    assert lengths(Pair(0.0, draft, 40), policy, 300)[-40:].count(0) > 35
    assert sum(lengths(Pair(0.95, 2, 40), policy, 600)[-50:]) > 100


def test_where_others_wait_for_the_draft_a_text_goes_on_without() -> None:
    """Waiting for a queue is a cost of drafting, and only as long as there is a queue."""
    policy, alone = AdaptiveLength(Experience()), Pair(0.8, draft=4, verify=40)
    assert lengths(alone, policy, 60)[-1] >= 2
    assert lengths(Pair(0.8, draft=40, verify=40), policy, 400)[-60:].count(0) > 50
    assert sorted(lengths(alone, policy, 1000)[-20:])[10] >= 2


def test_a_new_request_starts_from_what_others_have_shown() -> None:
    experience = Experience()
    lengths(Pair(0.9, 1, 30), AdaptiveLength(experience))
    assert lengths(Pair(0.9, 1, 30), AdaptiveLength(experience), 2)[-1] >= 6
    lengths(Pair(0.1, 30, 30), AdaptiveLength(experience))
    assert sum(lengths(Pair(0.1, 30, 30), AdaptiveLength(experience), 4)) <= 1  # a probe


def test_short_requests_probe_together() -> None:
    experience = Experience()
    lengths(Pair(0.0, 40, 40), AdaptiveLength(experience), 200)
    good = Pair(0.95, 2, 40)
    assert sum(lengths(good, AdaptiveLength(experience), 10)) <= 1
    for _ in range(100):
        last = lengths(good, AdaptiveLength(experience), 10)
    assert sum(last) > 20


def test_a_draft_that_has_nothing_to_say_teaches_nothing() -> None:
    policy = AdaptiveLength(Experience())
    policy.observe(StepCost(0, 0, 0, 40))
    first = policy.next_length()
    for _ in range(20):
        policy.observe(StepCost(0, 0, 0, 40))
    assert policy.next_length() == first


def test_what_long_verifications_take_is_not_forgotten() -> None:
    line = Line()
    for _ in range(20):
        line.add(0.0, 20.0)
        line.add(8.0, 100.0)
    for _ in range(5000):
        line.add(0.0, 20.0)
    assert line.at(8.0) == pytest.approx(100.0, rel=0.05)


def test_drafts_that_are_predrafted_cost_no_waiting() -> None:
    pair, experience = Pair(0.7, draft=40, verify=40), Experience()
    policy = AdaptiveLength(experience)
    for _ in range(100):
        step = pair.step(policy.next_length())
        policy.observe(StepCost(step.num_draft_tokens, step.num_accepted_tokens, 0,
                                step.verify_ns, is_cache_hit=True,
                                draft_rests=step.draft_rests))  # fmt: skip
    assert policy.next_length() >= 3


def test_a_fixed_length_stays() -> None:
    experience = Experience()
    policy = FixedLength(5, experience)
    policy.observe(StepCost(5, 0, 10**9, 7))
    assert policy.next_length() == 5
    assert experience.verify_ns.at(6, Beside.WORK) == pytest.approx(7)


def test_a_fixed_length_says_nothing_of_a_text_that_runs_beside_it() -> None:
    experience = Experience()
    policy = AdaptiveLength(experience)
    policy.observe(StepCost(1, 1, 1, 10))
    rate = policy.acceptance_rate
    for _ in range(20):
        FixedLength(8, experience).observe(StepCost(8, 0, 1, 10))
    assert policy.acceptance_rate == rate


def test_the_target_alone_is_tried_before_long() -> None:
    """Else nobody would know that a long verification is what makes steps slow."""
    chosen = lengths(Pair(0.9, 1, 30), AdaptiveLength(Experience()), 100)
    assert 0 in chosen[:4]
    assert 1 < chosen.count(0) < 8


def test_drafting_is_thought_of_as_proportional_at_first() -> None:
    experience = Experience()
    experience.observe(StepCost(3, 1, 30, 100))
    assert experience.draft_ns.at(6) == pytest.approx(60)
    assert experience.draft_ns.at(1) == pytest.approx(10)


def test_a_line_through_points() -> None:
    line = Line()
    assert line.at(3.0) == 0.0
    line.add(2.0, 10.0)
    assert line.at(5.0) == pytest.approx(10.0)
    line.add(4.0, 14.0)
    assert line.at(8.0) == pytest.approx(22.0)
    falling = Line()
    falling.add(1.0, 9.0)
    falling.add(2.0, 3.0)
    assert falling.at(100.0) >= 3.0


def observe_lookups(
    policy: AdaptiveLength, match_length: int, accepted: float, per_token: float, num_steps: int
) -> None:
    generator = random.Random(1)
    for step in range(num_steps):
        length = policy.lookup_length(match_length, False) if step % 2 else 0
        num_accepted = 0
        while num_accepted < length and generator.random() < accepted:
            num_accepted += 1
        verify_ns = int(1e6 * (30 + per_token * length))
        policy.observe(
            StepCost(length, num_accepted, 0, verify_ns, match_length=match_length * bool(length))
        )


def test_as_much_is_looked_up_as_has_matched() -> None:
    policy = AdaptiveLength(Experience())
    observe_lookups(policy, 6, accepted=0.9, per_token=1, num_steps=20)
    assert [policy.lookup_length(n, False) for n in (2, 6)] == [2, 6]
    assert 8 < policy.lookup_length(40, False) <= 16


@pytest.mark.parametrize(("num_steps", "slow_ns"), [(3, 60_000_000), (200, 45_000_000)])
def test_what_a_working_draft_costs_is_not_blamed_on_the_tokens_that_it_brings(
    num_steps: int, slow_ns: int
) -> None:
    """Steps of one draft token, each slow because the draft works on beside it."""
    told, untold = Experience(token_ns=1_000_000), Experience()
    for experience in (told, untold):
        for _ in range(num_steps):
            experience.observe(StepCost(0, 0, 0, 15_000_000, draft_rests=True))
            experience.observe(StepCost(1, 0, 5_000_000, slow_ns))
    assert AdaptiveLength(told).lookup_length(6, False) >= 3
    assert AdaptiveLength(untold).lookup_length(6, False) >= 2
    for _ in range(20):  # longer ones tell, whoever works
        told.observe(StepCost(0, 0, 0, 15_000_000, draft_rests=True))
        told.observe(StepCost(8, 2, 0, 120_000_000, match_length=8, draft_rests=True))
    told.length = 0  # where the draft works, its cost is paid for any length
    assert AdaptiveLength(told).lookup_length(6, False) <= 1


def test_what_the_text_refutes_is_not_looked_up_where_verifying_costs() -> None:
    policy = AdaptiveLength(Experience())
    observe_lookups(policy, 6, accepted=0.0, per_token=6, num_steps=40)
    assert policy.lookup_length(6, False) == 0


def test_what_is_looked_up_says_nothing_of_the_draft() -> None:
    experience = Experience()
    policy = AdaptiveLength(experience)
    before = experience.acceptance
    observe_lookups(policy, 6, accepted=0.0, per_token=6, num_steps=40)
    assert experience.acceptance == before
    assert not experience.has_draft_steps


def test_a_fixed_length_limits_what_is_looked_up() -> None:
    assert [FixedLength(3, Experience()).lookup_length(n, False) for n in (1, 3, 9)] == [1, 3, 3]


def test_a_text_counts_once_for_those_that_follow() -> None:
    experience = Experience()
    bad = AdaptiveLength(experience, predrafts=True)
    for _ in range(30):
        bad.observe(StepCost(1, 0, 0, 40_000_000, is_cache_hit=True))
    rates = [AdaptiveLength(experience, predrafts=True).acceptance_rate for _ in range(5)]
    assert rates[0] == rates[-1] > 2 * bad.acceptance_rate
