from __future__ import annotations

import dataclasses

import pytest

from outrider.cli.idle_draft import why_idle
from outrider.protocol.messages import PolicyEstimates, SpeculationStats
from tests.outrider.cli.test_report import SPECULATIVE

ESTIMATES = PolicyEstimates(0.38, 0.6, 16_000_000, 2_000_000, 4_000_000)
IDLE = dataclasses.replace(
    SPECULATIVE,
    speculation=SpeculationStats(num_idle_steps=9, num_active_steps=1),
    estimates=ESTIMATES,
)


def test_it_says_why_the_draft_was_idle_and_what_would_change_that() -> None:
    assert why_idle([IDLE, IDLE]) == (
        "The draft was idle in 18 of 20 steps, since the target was faster without it: a step of "
        "the target takes 16.0 ms (2.0 ms more while the draft works), a draft token 4.0 ms, and "
        "about 38% of draft tokens are accepted. It would pay if about 60% were accepted, or fewer "
        "with a faster draft or one with cores of its own."
    )


@pytest.mark.parametrize(
    ("sufficient", "expected"),
    [(1.01, "no acceptance rate would make it pay"), (0.3, "By now it would pay.")],
)
def test_a_sufficient_rate_may_be_out_of_reach_or_reached(sufficient: float, expected: str) -> None:
    estimates = dataclasses.replace(ESTIMATES, sufficient_acceptance_rate=sufficient)
    assert expected in why_idle([dataclasses.replace(IDLE, estimates=estimates)])


def test_what_is_unknown_or_does_not_matter_is_not_told() -> None:
    estimates = dataclasses.replace(ESTIMATES, slowdown_ns=1, draft_token_ns=0)
    text = why_idle([dataclasses.replace(IDLE, estimates=estimates)])
    assert "takes 16.0 ms, and about" in text
    assert text.endswith("or fewer with a faster draft.")


def test_nothing_is_said_of_a_draft_that_works_or_of_none() -> None:
    working = SpeculationStats(num_idle_steps=2, num_active_steps=3)
    assert why_idle([dataclasses.replace(IDLE, speculation=working)]) == ""
    assert why_idle([dataclasses.replace(IDLE, estimates=None)]) == ""
