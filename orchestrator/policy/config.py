"""The numbers of the draft policy."""

from dataclasses import dataclass

MAX_DRAFT_LENGTH = 16


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """What the adaptive policy assumes before it has seen anything, and how quickly it learns."""

    decay: float = 0.98
    """Factor by which each new observation discounts the earlier ones."""
    prior_acceptance: float = 0.5
    """The acceptance rate of a draft that has not shown any."""
    prior_tokens: float = 8.0
    """Weight of the prior acceptance rate, in draft tokens."""
    lookup_acceptance: float = 0.6
    """The acceptance rate of prompt lookup, at the beginning of each text."""
    hysteresis: float = 1.03
    """The gain in goodput for which an idle draft is put to work."""
    exploration_share: float = 0.01
    """The part of the time that probes may cost in the long run."""
    probe_steps: int = 4
    """Steps with the draft in one probe; it shows what it is worth from the second one on."""
    probe_interval: int = 48
    """Steps between probes, of all texts together; more where they cost more, or fail."""
    high_latency_ns: float = 4e6
    """Round trip above which the loop pipelines or runs ahead.

    gRPC and a busy machine alone take a millisecond or two.
    """
    many_sessions: float = 2.0
    """Sessions in one forward pass of the target, on average, that count as shared."""
    shortest_interruption: int = 8
    """Looked-up tokens for which a target that runs ahead is interrupted."""
