"""The constants of the draft policy."""

from dataclasses import dataclass

MAX_DRAFT_LENGTH = 16


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """What the adaptive policy assumes initially, how quickly it learns, and its thresholds."""

    decay: float = 0.98
    """Factor by which each new observation discounts the earlier ones."""
    prior_acceptance: float = 0.5
    """Acceptance rate that is assumed of a new draft, and of prompt lookup in each text."""
    prior_tokens: float = 8.0
    """Weight of the prior acceptance rate, in draft tokens."""
    optimism: float = 0.5
    """How many standard deviations above its estimate the acceptance rate is assumed to be."""
    hysteresis: float = 1.03
    """Goodput with the draft, relative to the target alone, from which an idle draft is used."""
    exploration_share: float = 0.01
    """Share of the tokens that probes may cost in the long run."""
    probe_steps: int = 4
    """Steps in one probe of the draft; the first is not representative, since nothing was
    predrafted for it."""
    high_latency_ns: float = 4e6
    """Round-trip time to the target above which the loop uses pipelined verification or run-ahead.

    Without any network, gRPC on a busy machine takes a millisecond or two.
    """
    shortest_interruption: int = 8
    """Minimum number of looked-up tokens for which a run-ahead is interrupted."""
