"""Why a draft was idle, from what the draft policy estimated."""

from collections.abc import Sequence

from outrider.client.results import Generation
from outrider.protocol.messages import PolicyEstimates

# The share of a step of the target alone from which a slowdown is worth mentioning.
_NOTICEABLE = 0.02


def why_idle(generations: Sequence[Generation]) -> str:
    """Why the draft was idle in most steps of these texts, and what would change that.

    Empty if it was not, or if the policy did not decide that.
    """
    num_idle = sum(each.speculation.num_idle_steps for each in generations)
    num_active = sum(each.speculation.num_active_steps for each in generations)
    estimates = generations[-1].estimates
    if estimates is None or num_idle <= num_active:
        return ""
    return (
        f"The draft was idle in {num_idle} of {num_idle + num_active} steps, since the target "
        f"was faster without it: {_costs(estimates)}. {_change(estimates)}"
    )


def _costs(estimates: PolicyEstimates) -> str:
    costs = f"a step of the target takes {_ms(estimates.target_step_ns)}"
    if _slows(estimates):
        costs += f" ({_ms(estimates.slowdown_ns)} more while the draft works)"
    if estimates.draft_token_ns:
        costs += f", a draft token {_ms(estimates.draft_token_ns)}"
    return f"{costs}, and about {estimates.acceptance_rate:.0%} of draft tokens are accepted"


def _change(estimates: PolicyEstimates) -> str:
    wanted = estimates.sufficient_acceptance_rate
    faster = "a faster draft"
    if _slows(estimates):  # they compete for cores
        faster += " or one with cores of its own"
    if wanted > 1:
        return f"At these times no acceptance rate would make it pay; {faster} might."
    if wanted > estimates.acceptance_rate:
        return f"It would pay if about {wanted:.0%} were accepted, or fewer with {faster}."
    return "By now it would pay."


def _slows(estimates: PolicyEstimates) -> bool:
    return estimates.slowdown_ns > _NOTICEABLE * estimates.target_step_ns


def _ms(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms"
