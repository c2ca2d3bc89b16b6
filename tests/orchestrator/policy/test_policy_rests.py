"""A draft that is no good, or not beside this target, rests soon; one that is good does not."""

from __future__ import annotations

import random

import pytest

from orchestrator.policy.adaptive_length import AdaptiveLength
from orchestrator.policy.experience import Experience, StepCost
from orchestrator.policy.pass_time import Beside
from tests.orchestrator.policy.test_policy_preparing import Pair


def test_a_draft_of_which_nothing_was_ever_accepted_rests_soon() -> None:
    """Most of its steps find nothing predrafted, so that no result tells how bad it is."""

    def useless(seed: int) -> Pair:
        chance = random.Random(seed)
        return Pair(0.0, draft=7, verify=14.5, hits=0.02, contention=1.12, chance=chance)

    assert sum(useless(seed).run(32) for seed in range(16)) / 16 > 0.935


@pytest.mark.parametrize("disturbed_ms", [15, 60])
def test_a_draft_beside_which_the_target_takes_twice_as_long_rests_soon(disturbed_ms: int) -> None:
    """Even if the first step of the target alone took as long, for reasons of its own."""
    policy = AdaptiveLength(Experience(token_ns=1e6), predrafts=True)
    policy.observe(StepCost(0, 0, 0, disturbed_ms * 1_000_000, draft_rests=True))
    slow, lengths = Pair(0.5, draft=4, verify=14.5, hits=0.5, contention=2.5), []
    for _ in range(30):
        lengths.append(policy.next_length())
        slow.step(policy)
    assert not any(lengths[24:])


def test_a_draft_of_which_nothing_was_ever_accepted_is_left_to_probes() -> None:
    """What the target alone takes is hardly known by then, and may look worse than it is."""
    policy = AdaptiveLength(experience := Experience(), predrafts=True)
    experience.verify_ns.add(1, Beside.REST, 16e6)
    useless = Pair(acceptance=0.0, draft=7, verify=14.5, hits=0.4, contention=1.12)
    lengths = []
    for _ in range(32):
        lengths.append(policy.next_length())
        useless.step(policy)
    assert sum(lengths) <= 10


def test_texts_that_suit_the_draft_badly_do_not_turn_it_off_for_others() -> None:
    """Probes in which something is accepted are not in vain, whatever comes of them."""

    def speeds(seed: int) -> tuple[float, float]:
        """Of six texts of which little is accepted, and of eight others after them."""
        experience = Experience(token_ns=1e6)
        pair = Pair(0.2, draft=3, verify=5, hits=0.55, contention=1.05, chance=random.Random(seed))

        def texts(acceptance: float, num_texts: int) -> float:
            pair.acceptance, pair.num_tokens, pair.ms = acceptance, 0, 0.0
            for _ in range(num_texts):
                policy = AdaptiveLength(experience, predrafts=True)
                for _ in range(50):
                    pair.step(policy)
            return pair.num_tokens / pair.ms * pair.verify

        return texts(0.2, 6), texts(0.65, 8)

    bad, good = zip(*(speeds(seed) for seed in range(16)), strict=True)
    assert sum(bad) / 16 > 0.95
    assert sum(good) / 16 > 1.08


def test_a_draft_that_holds_up_the_target_after_hits_only_rests_too() -> None:
    """Where it does not begin what would come too late, steps that miss are as quick as alone."""
    experience, num_drafting = Experience(token_ns=4e6), 0
    policy = AdaptiveLength(experience, predrafts=True)
    policy.observe(StepCost(0, 0, 0, 29_000_000, draft_rests=True))
    policy.observe(StepCost(1, 1, 23_000_000, 33_000_000, is_cache_miss=True))
    for seed in range(6):
        policy, chance = AdaptiveLength(experience, predrafts=True), random.Random(seed)
        for _ in range(30):
            drafts = policy.next_length() > 0
            is_hit = drafts and chance.random() < 0.2
            accepted = int(is_hit and chance.random() < 0.6)
            verify_ns = 100_000_000 if is_hit else 29_000_000
            policy.observe(
                StepCost(
                    int(is_hit),
                    accepted,
                    0,
                    int(verify_ns * chance.uniform(0.95, 1.05)),
                    is_cache_hit=is_hit,
                    is_cache_miss=drafts and not is_hit,
                    draft_rests=not drafts,
                )
            )
            num_drafting += drafts
    assert num_drafting < 40


def steps_to_probe(policy: AdaptiveLength) -> int:
    """Steps of the target alone, of 40 ms."""
    for number in range(3000):
        if policy.next_length():
            return number
        policy.observe(StepCost(0, 0, 0, 40_000_000, draft_rests=True))
    raise AssertionError("it is never probed again")


def test_the_reading_for_a_probe_is_a_part_of_what_it_costs() -> None:
    def steps_between_probes(reading_ms: float) -> int:
        experience = Experience(token_ns=1e6)
        experience.length = 0
        policy = AdaptiveLength(experience, predrafts=True)

        steps_to_probe(policy)
        for _ in range(3):
            policy.observe(StepCost(0, 0, 0, int(1e6 * reading_ms), catches_up=True))
        for _ in range(4):
            policy.observe(StepCost(1, 0, 0, 90_000_000, is_cache_hit=True))
        return steps_to_probe(policy)

    # What was lost, 60 ms, is to be a hundredth of the time.
    assert steps_between_probes(60) - steps_between_probes(40) == pytest.approx(150, rel=0.1)


@pytest.mark.parametrize(
    ("beside_ms", "alone_ms", "fewest", "most"),
    [(200, 30, 3, 12), (68, 60, 50, 60)],
    ids=["the draft", "the machine"],
)
def test_what_has_slowed_the_target_is_soon_found_out(
    beside_ms: float, alone_ms: float, fewest: int, most: int
) -> None:
    """More time beside a draft that did not hold up the target before may have either cause."""
    policy = AdaptiveLength(Experience(token_ns=4e6), predrafts=True)

    def num_drafting(beside_ms: float, alone_ms: float) -> int:
        drafts = 0
        for _ in range(60):
            if policy.next_length():
                drafts += 1
                policy.observe(StepCost(1, 1, 0, int(1e6 * beside_ms), is_cache_hit=True))
            else:
                policy.observe(StepCost(0, 0, 0, int(1e6 * alone_ms), draft_rests=True))
        return drafts

    assert num_drafting(beside_ms=38, alone_ms=30) > 50
    assert fewest <= num_drafting(beside_ms, alone_ms) <= most
