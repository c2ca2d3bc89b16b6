"""The policy beside a draft that works while the target does."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from orchestrator.policy.adaptive_length import AdaptiveLength
from orchestrator.policy.experience import Experience, StepCost
from orchestrator.policy.pass_time import Beside


@dataclass
class Pair:
    """A pair of models with given times (ms), acceptance, and share of results predrafted for."""

    acceptance: float
    draft: float
    verify: float
    hits: float
    contention: float = 1.0  # what verifications take longer while the draft works
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    num_waits: int = 0
    num_tokens: int = 0
    ms: float = 0.0
    was_predrafting: bool = False

    def step(self, policy: AdaptiveLength) -> None:
        wanted = policy.next_length()
        is_hit = wanted > 0 and self.was_predrafting and self.chance.random() < self.hits
        ready = max(1, int(self.verify / self.draft))
        hit_length = min(ready, policy.predrafted_length())
        length = hit_length if is_hit else policy.missed_length(wanted)
        draft_ms = 0.0 if is_hit else self.draft * length
        self.num_waits += draft_ms > 0
        accepted = 0
        while accepted < length and self.chance.random() < self.acceptance:
            accepted += 1
        noise = self.chance.uniform(0.95, 1.05)
        verify_ms = noise * (self.verify + length) * (self.contention if wanted else 1.0)
        policy.observe(
            StepCost(
                length,
                accepted,
                int(1e6 * draft_ms),
                int(1e6 * verify_ms),
                is_cache_hit=is_hit,
                draft_rests=wanted == 0,
                is_cache_miss=wanted > 0 and not is_hit and self.was_predrafting,
            )
        )
        self.was_predrafting = wanted > 0
        self.num_tokens += 1 + accepted
        self.ms += draft_ms + verify_ms

    def run(self, num_steps: int, predrafts: bool = True) -> float:
        """The speed, over that of the target alone."""
        policy = AdaptiveLength(Experience(), predrafts)
        for _ in range(num_steps):
            self.step(policy)
        return self.num_tokens / self.ms * self.verify


def test_what_would_cost_more_than_it_gives_is_not_waited_for() -> None:
    pair = Pair(acceptance=0.55, draft=12, verify=20, hits=0.6)
    assert pair.run(1000) > 1.2
    assert pair.num_waits < 40  # now and then, to learn what it would take
    waiting = Pair(acceptance=0.55, draft=12, verify=20, hits=0.0)
    assert waiting.run(1000, predrafts=False) < 1.05


def test_a_fast_draft_is_waited_for() -> None:
    pair = Pair(acceptance=0.9, draft=1, verify=30, hits=0.5)
    assert pair.run(1000) > 3
    assert pair.num_waits > 300


@pytest.mark.parametrize("contention", [1.0, 1.3])
@pytest.mark.parametrize("acceptance", [0.0, 0.1])
@pytest.mark.parametrize("draft", [2, 12, 40])
def test_a_useless_draft_costs_next_to_nothing(
    acceptance: float, draft: float, contention: float
) -> None:
    assert Pair(acceptance, draft, 20, 0.5, contention).run(2000) > 0.95


def test_a_draft_that_slows_the_target_down_rests() -> None:
    """What it gives on hits does not make up for the cores that it takes."""
    pair = Pair(acceptance=0.5, draft=12, verify=20, hits=0.3, contention=1.4)
    assert pair.run(2000) > 0.95
    assert Pair(acceptance=0.5, draft=12, verify=20, hits=0.6, contention=1.0).run(2000) > 1.1


def test_a_draft_that_has_become_good_is_found_out_without_waiting() -> None:
    policy = AdaptiveLength(Experience(), predrafts=True)
    pair = Pair(acceptance=0.0, draft=12, verify=20, hits=0.6)
    for _ in range(400):
        pair.step(policy)
    pair.acceptance, pair.num_waits = 0.8, 0
    for _ in range(600):
        pair.step(policy)
    assert policy.next_length() >= 1
    assert pair.num_waits < 30


def predrafted(num_tokens: int, awaited_ms: float = 0.0) -> StepCost:
    awaited_ns = int(1e6 * awaited_ms)
    return StepCost(num_tokens, num_tokens, 0, 20_000_000, True, awaited_ns=awaited_ns)


def test_what_is_under_way_is_waited_for_as_long_as_a_draft_token_is_worth() -> None:
    policy = AdaptiveLength(Experience(), predrafts=True)
    for _ in range(50):
        policy.observe(predrafted(1))
    # A step of 20 ms gives two tokens or nearly so: a token is worth 10.
    assert policy.patience_ns() == pytest.approx(10e6, rel=0.2)


def test_waiting_for_what_is_under_way_counts() -> None:
    quick, slow = (AdaptiveLength(Experience(), predrafts=True) for _ in range(2))
    for _ in range(50):
        quick.observe(predrafted(1))
        slow.observe(predrafted(1, awaited_ms=15))
    assert slow.speed(1) < 0.7 * quick.speed(1)


def test_what_is_ready_in_time_bounds_what_is_hoped_for() -> None:
    little, much = (AdaptiveLength(Experience(), predrafts=True) for _ in range(2))
    for policy, length in ((little, 1), (much, 4)):
        policy.observe(StepCost(1, 1, 40_000_000, 20_000_000))  # asking takes long
        for _ in range(50):
            policy.observe(predrafted(length))
    assert much.speed(1) > 2 * little.speed(1)
    assert little.speed(8) == little.speed(1)


@pytest.mark.parametrize(("acceptance", "low", "high"), [(0.0, 1, 1), (0.5, 1, 3), (0.95, 6, 16)])
def test_as_much_is_predrafted_as_is_worth_verifying(
    acceptance: float, low: int, high: int
) -> None:
    """Whether there is time for so much is the draft's to know."""
    policy, chance = AdaptiveLength(Experience(token_ns=3e6), predrafts=True), random.Random(0)
    policy.observe(StepCost(0, 0, 0, 20_000_000, draft_rests=True))
    assert policy.predrafted_length() == 1  # as long as nothing was ever accepted
    for _ in range(60):
        accepted = 0
        while accepted < 2 and chance.random() < acceptance:
            accepted += 1
        policy.observe(StepCost(2, accepted, 0, 26_000_000, is_cache_hit=True))
    assert low <= policy.predrafted_length() <= high
    assert policy.acceptance_rate == pytest.approx(acceptance, abs=0.15)


@pytest.mark.parametrize(
    ("probes_in_vain", "steps_since", "slowness", "length"),
    [(0, 20, 1.0, 1), (0, 10, 1.0, 0), (1, 20, 1.0, 0), (0, 20, 3.0, 0)],
)
def test_another_text_is_probed_at_its_beginning_if_a_probe_is_nearly_due(
    probes_in_vain: int, steps_since: int, slowness: float, length: int
) -> None:
    experience = at_rest(probes_in_vain)
    experience.steps_since_probe = steps_since
    for _ in range(4):
        experience.verify_ns.add(1, Beside.WORK, slowness * 20e6)
    assert AdaptiveLength(experience, predrafts=False).next_length() == 0
    assert AdaptiveLength(experience, predrafts=True).next_length() == length


def at_rest(probes_in_vain: int = 0, sessions: float = 1.0) -> Experience:
    """Of a pair whose target went alone for some steps."""
    experience = Experience(length=0, num_plain_steps=8, probes_in_vain=probes_in_vain)
    experience.verify_ns.add(1, Beside.REST, 20e6)
    experience.steps_since_probe, experience.sessions = 20, sessions
    return experience


def test_of_texts_that_begin_together_one_is_probed_and_none_where_many_are_served() -> None:
    experience = at_rest()
    lengths = [AdaptiveLength(experience, predrafts=True).next_length() for _ in range(16)]
    assert sum(lengths) == 1
    experience = at_rest(sessions=8.0)
    lengths = [AdaptiveLength(experience, predrafts=True).next_length() for _ in range(16)]
    assert sum(lengths) == 0


def test_a_draft_that_is_no_good_reads_few_prompts_until_it_is() -> None:
    experience, pair = Experience(), Pair(acceptance=0.0, draft=5, verify=20, hits=0.5)

    def text() -> bool:
        """Whether the draft is used."""
        policy = AdaptiveLength(experience, predrafts=True)
        for _ in range(32):
            pair.step(policy)
        return policy.uses_draft

    assert all(text() for _ in range(4))
    assert sum(text() for _ in range(64)) <= 6 + 4  # until it is known, then now and then
    pair.acceptance = 0.9
    used = [text() for _ in range(80)]  # in one of its turns it shows itself
    assert all(used[-16:])


@pytest.mark.parametrize("predrafts", [True, False])
@pytest.mark.parametrize(("rtt_ms", "verify_ms", "most"), [(50.0, 16.0, 1.25), (5.0, 40.0, 1.045)])
def test_a_far_target_that_goes_on_alone_is_seldom_held_up(
    rtt_ms: float, verify_ms: float, most: float, predrafts: bool
) -> None:
    """Draft steps wait for a round trip each, and the target alone for one in 33.

    Who interrupts it waits for what is left of a pass, besides.
    """
    ms, num_tokens = 0.0, 0
    for number in range(6 * 8):
        if number % 8 == 0:  # another pair
            experience, chance, num_unasked = Experience(), random.Random(number), 0
        policy = AdaptiveLength(experience, predrafts)
        for _ in range(32):
            length = policy.next_length()
            waits = length > 0 or num_unasked == 0
            is_known_far = experience.distance.is_far
            lost_ms = verify_ms / 2 if length and num_unasked else 0.0
            num_unasked = 0 if length or not is_known_far else (32 if waits else num_unasked - 1)
            accepted = int(length > 0 and chance.random() < 0.4)
            took_ms = verify_ms * (1 + length / 4) + rtt_ms * waits + lost_ms
            if waits:
                experience.distance.observe(int(1e6 * took_ms), int(1e6 * verify_ms), False)
            policy.observe(
                StepCost(
                    length,
                    accepted,
                    int(8e6 * length),
                    int(1e6 * took_ms),
                    draft_rests=length == 0,
                    was_unasked=not waits,
                )
            )
            ms += took_ms + 8 * length
            num_tokens += 1 + accepted
    assert ms / num_tokens < most * verify_ms


def test_what_was_ready_for_good_texts_promises_nothing_for_bad_ones() -> None:
    """Of what is ready, the loop takes as much as pays: here one token, and none of four."""
    policy = AdaptiveLength(Experience(token_ns=12_600_000), predrafts=True)
    for _ in range(60):
        policy.observe(StepCost(4, 4, 0, 85_000_000, is_cache_hit=True))
    for _ in range(60):
        policy.observe(StepCost(0, 0, 0, 34_000_000, draft_rests=True))
        policy.observe(StepCost(1, 0, 0, 47_000_000, is_cache_hit=True))
        policy.observe(StepCost(1, 1, 0, 47_000_000, is_cache_hit=True))
    short = Experience(token_ns=12_600_000)
    same = AdaptiveLength(short, predrafts=True)
    for _ in range(200):
        same.observe(StepCost(0, 0, 0, 34_000_000, draft_rests=True))
        same.observe(StepCost(1, 0, 0, 47_000_000, is_cache_hit=True))
        same.observe(StepCost(1, 1, 0, 47_000_000, is_cache_hit=True))
    assert policy.speed(1) == pytest.approx(same.speed(1), rel=0.15)
