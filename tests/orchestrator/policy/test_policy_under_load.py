"""The draft length where sessions share the target's passes, and wait for each other's tokens."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence

import pytest

from orchestrator.policy.adaptive_length import AdaptiveLength
from orchestrator.policy.experience import Experience, StepCost

FIXED_MS, PER_TOKEN_MS, ACCEPTANCE = 30.0, 4.0, 0.5


def share_passes(
    policies: Sequence[AdaptiveLength], num_passes: int, chance: random.Random
) -> list[int]:
    """All sessions verify in the same passes; returns every length that one chose."""
    chosen = []
    for _ in range(num_passes):
        lengths = [policy.next_length() for policy in policies]
        batch_tokens = sum(lengths) + len(lengths)
        took_ms = chance.uniform(0.9, 1.1) * (FIXED_MS + PER_TOKEN_MS * batch_tokens)
        for policy, length in zip(policies, lengths, strict=True):
            accepted = 0
            while accepted < length and chance.random() < ACCEPTANCE:
                accepted += 1
            cost = StepCost(
                length,
                accepted,
                draft_ns=int(1e6 * length),
                verify_ns=int(1e6 * took_ms),
                batch_tokens=batch_tokens,
                batch_sessions=len(policies),
                draft_rests=length == 0,
            )
            policy.observe(cost)
        chosen += lengths
    return chosen


@pytest.mark.parametrize(("num_sessions", "low", "high"), [(1, 1, 4), (16, 0, 0)])
def test_the_length_gives_way_under_load(num_sessions: int, low: int, high: int) -> None:
    """At 16 sessions the weights are paid for, and each token more costs its full price."""
    experience = Experience()
    policies = [AdaptiveLength(experience) for _ in range(num_sessions)]
    chosen = share_passes(policies, 200, random.Random(0))
    assert low <= statistics.median(chosen[len(chosen) // 2 :]) <= high


def test_under_load_one_request_probes_for_all() -> None:
    experience = Experience()
    policies = [AdaptiveLength(experience) for _ in range(16)]
    chosen = share_passes(policies, 400, random.Random(0))
    passes = [chosen[begin : begin + 16] for begin in range(len(chosen) // 2, len(chosen), 16)]
    drafting = [sum(length > 0 for length in lengths) for lengths in passes]
    assert max(drafting) == 1
    assert 20 < sum(drafting) < 60  # of 200 passes with 16 steps each


def test_requests_under_load_spare_the_draft_their_prompts_until_it_ends() -> None:
    experience, chance = Experience(), random.Random(0)
    loaded = [AdaptiveLength(experience) for _ in range(16)]
    assert all(policy.uses_draft for policy in loaded)
    share_passes(loaded, 200, chance)
    late = [AdaptiveLength(experience) for _ in range(64)]
    probing = [policy for policy in late if policy.uses_draft]
    assert len(probing) == 4
    spared = next(policy for policy in late if not policy.uses_draft)
    assert set(share_passes([spared], 200, chance)) == {0}  # alone now
    again = AdaptiveLength(experience)
    assert again.uses_draft
    assert statistics.median(share_passes([again], 200, chance)[100:]) >= 1
