"""What the policy makes of drafts, good and bad, where steps take what they are said to take."""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from orchestrator.policy.adaptive import AdaptivePolicy
from orchestrator.policy.cost_model import PairState
from orchestrator.policy.draft_policy import FixedLength
from orchestrator.step import DraftState
from outrider_bench.models.simulated_pair import MACHINES, Machine, SimulatedPair

NAMES = {machine.name: machine for machine in MACHINES}
ONE_MEMORY, GPUS = NAMES["one memory"], NAMES["GPUs"]
SHARED = NAMES["shared with a feature draft"]


def pair(
    machine: Machine, acceptance: float, seed: int = 0, predrafts: bool = True
) -> SimulatedPair:
    return SimulatedPair(machine, acceptance, random.Random(seed), predrafts)


def speedup(
    pairs: Sequence[SimulatedPair],
    num_texts: int,
    num_tokens: int = 64,
    policy: Callable[[PairState], FixedLength] | None = None,
) -> float:
    """Over the target alone, of so many texts more."""
    ms = ms_alone = 0.0
    for simulated in pairs:
        simulated.ms = simulated.ms_alone = 0.0
        for _ in range(num_texts):
            simulated.write(num_tokens, policy and policy(simulated.state))
        ms, ms_alone = ms + simulated.ms, ms_alone + simulated.ms_alone
    return ms_alone / ms


@pytest.mark.parametrize("acceptance", [0.0, 0.2, 0.35])
@pytest.mark.parametrize("machine", MACHINES, ids=list(NAMES))
def test_a_draft_that_does_not_pay_costs_next_to_nothing(
    machine: Machine, acceptance: float
) -> None:
    pairs = [pair(machine, acceptance, seed) for seed in range(3)]
    # On shared cores, to read one prompt takes as long as seven tokens of the target's.
    assert speedup(pairs, 8, 32) > (0.93 if machine is NAMES["the same cores"] else 0.96)
    assert speedup(pairs, 20) > 0.98


@pytest.mark.parametrize("predrafts", [True, False], ids=["predrafting", "sequential"])
@pytest.mark.parametrize("acceptance", [0.55, 0.8, 0.95])
@pytest.mark.parametrize("machine", [ONE_MEMORY, GPUS], ids=["one memory", "GPUs"])
def test_once_learned_it_is_as_fast_as_the_best_fixed_length(
    machine: Machine, acceptance: float, predrafts: bool
) -> None:
    learned = [pair(machine, acceptance, seed, predrafts) for seed in range(3)]
    speedup(learned, 20)
    best = max(
        speedup(
            [pair(machine, acceptance, 9, predrafts)],
            16,
            policy=partial(FixedLength, length=k),
        )
        for k in (0, 2, 5, 9)
    )
    assert speedup(learned, 14) > 0.93 * best


@pytest.mark.parametrize(
    ("machine", "least"), [(ONE_MEMORY, 1.35), (NAMES["hosts of their own"], 1.5), (GPUS, 2.1)]
)
def test_a_good_draft_pays_from_the_first_texts_on(machine: Machine, least: float) -> None:
    assert speedup([pair(machine, 0.8, seed) for seed in range(6)], 8, 32) > least


def steps_until(simulated: SimulatedPair, num_tokens: int, most: int, active: bool) -> int:
    """Steps, in texts of so many tokens, until the draft works, or is idle, for 20 in a row."""
    latest: deque[bool] = deque(maxlen=20)
    texts = (simulated.steps(num_tokens) for _ in itertools.count())
    for number, step in enumerate(itertools.islice(itertools.chain.from_iterable(texts), most)):
        latest.append(step.draft_state is not DraftState.IDLE)
        if len(latest) == 20 and sum(latest) == 20 * active:
            return number - 19
    return most


@pytest.mark.parametrize("num_tokens", [40, 1000])
@pytest.mark.parametrize("predrafts", [True, False], ids=["predrafting", "sequential"])
@pytest.mark.parametrize("machine", [GPUS, NAMES["hosts of their own"]], ids=["GPUs", "hosts"])
def test_a_draft_that_has_become_good_is_found(
    machine: Machine, predrafts: bool, num_tokens: int
) -> None:
    found = []
    for seed in range(5):
        simulated = pair(machine, 0.0, seed, predrafts)
        speedup([simulated], 10)
        simulated.acceptance = 0.85
        found.append(steps_until(simulated, num_tokens, 2000, active=True))
    assert statistics.median(found) < 600
    assert max(found) < 1500


@pytest.mark.parametrize("texts_before", [0, 10])
@pytest.mark.parametrize("machine", MACHINES, ids=list(NAMES))
def test_a_bad_draft_is_idle_soon(machine: Machine, texts_before: int) -> None:
    for seed in range(4):
        simulated = pair(machine, 0.8, seed)
        speedup([simulated], texts_before) if texts_before else None
        simulated.acceptance = 0.0
        # Where drafting costs next to nothing, there is no haste.
        assert steps_until(simulated, 500, 300, active=False) < (200 if machine is GPUS else 120)


def test_it_goes_by_goodput_not_by_acceptance() -> None:
    """Half of the draft tokens are accepted, and it does not pay where passes take no less."""
    slow = Machine("a slow draft", 40, 2, 30, 30, beside=30)
    assert speedup([pair(slow, 0.5, seed) for seed in range(3)], 20) > 0.97
    fast = Machine("a fast draft", 40, 2, 3, 3)
    assert speedup([pair(fast, 0.5, seed) for seed in range(3)], 20) > 1.4


@pytest.mark.parametrize("predrafts", [True, False], ids=["predrafting", "sequential"])
@pytest.mark.parametrize(("rtt_ms", "pass_ms"), [(50, 16), (5, 40), (100, 30)])
def test_a_distant_target_runs_ahead_and_is_seldom_held_up(
    rtt_ms: float, pass_ms: float, predrafts: bool
) -> None:
    """Only one in 33 of its steps waits for the network, and probes cost a hundredth."""
    distant = Machine("distant", pass_ms, pass_ms / 5, 8, 8, round_trip=rtt_ms)
    pairs = [pair(distant, 0.3, seed, predrafts) for seed in range(3)]
    assert speedup(pairs, 8, 32) > 0.93
    assert speedup(pairs, 20) > 0.97


@pytest.mark.parametrize("predrafts", [True, False], ids=["predrafting", "sequential"])
@pytest.mark.parametrize("acceptance", [0.0, 0.35, 0.45, 0.55, 0.65])
def test_a_young_policy_pays_for_few_round_trips(acceptance: float, predrafts: bool) -> None:
    """A step with the draft costs one, which none of these drafts makes good."""
    pairs = [pair(NAMES["20 ms to the target"], acceptance, seed, predrafts) for seed in range(6)]
    assert speedup(pairs, 8, 32) > 0.95


@pytest.mark.parametrize(
    ("name", "predrafts"), [("shared with a feature draft", False), ("hosts of their own", True)]
)
def test_a_draft_predrafts_where_that_does_not_delay_the_target(name: str, predrafts: bool) -> None:
    """Otherwise the loop waits for it; now and then it is seen whether that has changed."""
    simulated = pair(NAMES[name], 0.6)
    speedup([simulated], 10)
    steps = [step for _ in range(20) for step in simulated.steps(64)]
    active = [step.is_predrafting for step in steps if step.draft_state is DraftState.ACTIVE]
    assert len(active) > 300
    assert statistics.mean(active) > 0.9 if predrafts else 0 < statistics.mean(active) < 0.1


def test_predrafting_that_no_longer_delays_the_target_is_found() -> None:
    delayed = NAMES["shared with a feature draft"]
    simulated = pair(dataclasses.replace(delayed, draft=8, next_draft=6), 0.7)
    speedup([simulated], 10)
    simulated.machine = dataclasses.replace(simulated.machine, beside=0)
    speedup([simulated], 10)
    steps = [step for _ in range(10) for step in simulated.steps(64)]
    active = [step.is_predrafting for step in steps if step.draft_state is DraftState.ACTIVE]
    assert statistics.mean(active) > 0.9


def test_several_texts_do_not_wait_for_the_draft_in_turn() -> None:
    """Each would have passes of its own, where the target alone serves all of them in one."""
    simulated = pair(SHARED, 0.7)
    simulated.write(64)
    state = simulated.state
    first = AdaptivePolicy(state)
    assert not state.plan(0.7, state.idle_goodput, predrafts=True).predrafts
    second = AdaptivePolicy(state)
    assert state.shares_passes
    assert state.plan(0.7, state.idle_goodput, predrafts=True).predrafts
    del second
    assert not state.plan(0.7, state.idle_goodput, predrafts=True).predrafts
    del first
