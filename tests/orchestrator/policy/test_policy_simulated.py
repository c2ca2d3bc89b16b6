"""What the policy makes of drafts, good and bad, where steps take what they are said to take."""

from __future__ import annotations

import random
import statistics

import pytest

from benchmarks.policy import MACHINES
from orchestrator.policy.adaptive_length import AdaptiveLength
from orchestrator.policy.experience import Experience, StepCost
from orchestrator.policy.pass_time import Beside, PassTime
from outrider_bench.models.simulated_pair import Machine, SimulatedPair
from tests.orchestrator.policy.test_policy_rests import steps_to_probe

NAMES = {machine.name: machine for machine in MACHINES}


def speedup(machine: Machine, acceptance: float, num_texts: int, num_tokens: int) -> float:
    """The mean over some courses of events."""
    pairs = [SimulatedPair(machine, acceptance, random.Random(seed)) for seed in range(5)]
    for pair in pairs:
        for _ in range(num_texts):
            pair.write(num_tokens)
    return statistics.mean(pair.speedup for pair in pairs)


@pytest.mark.parametrize("acceptance", [0.0, 0.2, 0.35])
@pytest.mark.parametrize("name", ["one memory", "a faster CPU", "hosts of their own"])
def test_a_draft_that_does_not_pay_costs_next_to_nothing(name: str, acceptance: float) -> None:
    assert speedup(NAMES[name], acceptance, 14, 64) > 0.98


@pytest.mark.parametrize("acceptance", [0.0, 0.55, 0.8])
def test_a_draft_on_the_targets_cores_costs_no_more_than_finding_out(acceptance: float) -> None:
    """To read one prompt there takes as long as seven tokens, and four of 900 are lost then."""
    assert speedup(NAMES["the same cores"], acceptance, 14, 64) > 0.96


@pytest.mark.parametrize(
    ("name", "least"), [("one memory", 1.33), ("hosts of their own", 1.45), ("GPUs", 2.0)]
)
def test_a_good_draft_pays_from_the_first_texts_on(name: str, least: float) -> None:
    assert speedup(NAMES[name], 0.8, 8, 32) > least


def test_a_step_is_decided_with_few_looks_at_what_passes_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It stands between a result and the next verification."""
    num_looks, at = 0, PassTime.at

    def counted(self: PassTime, num_tokens: float, beside: Beside) -> float:
        nonlocal num_looks
        num_looks += 1
        return at(self, num_tokens, beside)

    monkeypatch.setattr(PassTime, "at", counted)
    pair = SimulatedPair(NAMES["one memory"], 0.6, random.Random(0))
    for _ in range(4):
        pair.write(64)
    assert num_looks < 60 * 4 * 64


def test_a_step_that_was_held_up_for_long_puts_off_probes_for_some_time_only() -> None:
    experience = Experience(token_ns=1e6)
    experience.length = 0
    policy = AdaptiveLength(experience, predrafts=True)

    steps_to_probe(policy)
    policy.observe(StepCost(0, 0, 0, 10_000_000_000, catches_up=True))
    for _ in range(4):
        policy.observe(StepCost(1, 0, 0, 90_000_000, is_cache_hit=True))
    # Eight steps, at which it is counted, and one and a quarter of each of four.
    assert steps_to_probe(policy) == pytest.approx(1300, rel=0.05)


def test_probes_that_texts_end_in_are_made_up_for_all_the_same() -> None:
    """A draft that reads for longer than a text lasts would be tried in each, at any cost."""
    experience, num_steps_beside = Experience(token_ns=1e6), 0
    experience.length = 0
    for _ in range(40):
        policy = AdaptiveLength(experience, predrafts=True)
        for _ in range(40):
            if policy.next_length():
                num_steps_beside += 1
                policy.observe(StepCost(0, 0, 0, 80_000_000, catches_up=True))
            else:
                policy.observe(StepCost(0, 0, 0, 40_000_000, draft_rests=True))
    assert num_steps_beside < 90
