"""What steps have cost and brought so far, for the policy that chooses draft lengths."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.policy.pass_time import Beside, PassTime
from orchestrator.policy.round_trip import Distance

FIRST_LENGTH = 1

# So many sessions in a pass on average are many.
MANY_SESSIONS = 2.0

# What an old step counts, step by step. A request's own acceptance says more about it.
_FORGETTING_COSTS = 0.98
_FORGETTING_ACCEPTANCE = 0.96
# Points that vary less than this in x, squared, say nothing about a slope.
_LEAST_SPREAD = 1e-2
# A text's acceptance is taken from others before it, as if so many tokens had shown it.
PRIOR_TOKENS = 6.0
_FIRST_ACCEPTANCE = 0.5
# What the latest text counts for the next one: texts differ, and so do drafts.
_LATEST_TEXT = 0.7
# A target that seems slower by so much than when it was last alone may be held up by the draft.
_SLOWED = 1.25
# So often the draft is taken to have predrafted for something else until it has shown.
_FIRST_MISSES = 0.4


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step took, in nanoseconds as the loop waited, and what it brought."""

    num_draft_tokens: int
    num_accepted_tokens: int
    draft_ns: int
    verify_ns: int
    is_cache_hit: bool = False
    match_length: int = 0
    """For draft tokens that were looked up: how many tokens before them matched."""
    batch_tokens: int = 0
    """Of the verification's pass, with those of all sessions that shared it; 0 if unknown."""
    batch_sessions: int = 1
    draft_rests: bool = False
    """Whether the draft had nothing to do meanwhile. It may share cores or memory."""
    is_cache_miss: bool = False
    """Whether the draft had predrafted for other outcomes only. It was waited for or not."""
    awaited_ns: int = 0
    """For what the draft was about to have predrafted, whether it came in time or not."""
    was_unasked: bool = False
    """Whether the target went on alone to it."""
    catches_up: bool = False
    """Whether the draft was reading what it had missed, at rest or as a prompt."""
    is_confirmed: bool = False
    """For draft tokens that were looked up: whether the draft had predrafted the first, too."""

    @property
    def ns(self) -> int:
        """Of the whole step."""
        return self.draft_ns + self.awaited_ns + self.verify_ns

    @property
    def beside(self) -> Beside:
        """What the draft did meanwhile."""
        if self.draft_rests:
            return Beside.REST
        return Beside.WORK_AFTER_HIT if self.is_cache_hit else Beside.WORK


@dataclass
class Line:
    """A straight line through points of which older ones count less.

    Args:
        origin: what the origin counts beside each point: with some, the line through
            points of one x is a proportion, else it is flat.
    """

    origin: float = 0.0
    weight: float = 0.0
    slope: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        self.weight = _FORGETTING_COSTS * self.weight + 1.0 + self.origin
        self.x = _FORGETTING_COSTS * self.x + x
        self.y = _FORGETTING_COSTS * self.y + y
        self.xx = _FORGETTING_COSTS * self.xx + x * x
        self.xy = _FORGETTING_COSTS * self.xy + x * y
        spread = self.weight * self.xx - self.x * self.x
        # Long after the last point of another x, the slope is what it last was.
        if spread > _LEAST_SPREAD * self.weight:
            self.slope = max(0.0, (self.weight * self.xy - self.x * self.y) / spread)

    def at(self, x: float) -> float:
        """The line's height; it never falls."""
        if not self.weight:
            return 0.0
        return max(0.0, (self.y - self.slope * self.x) / self.weight + self.slope * x)


@dataclass
class Acceptance:
    """How often a draft token is accepted, given that those before it were."""

    accepted: float = _FIRST_ACCEPTANCE * PRIOR_TOKENS
    judged: float = PRIOR_TOKENS

    @property
    def rate(self) -> float:
        return self.accepted / self.judged

    def add(self, cost: StepCost) -> None:
        was_rejected = cost.num_accepted_tokens < cost.num_draft_tokens
        self.accepted = _FORGETTING_ACCEPTANCE * self.accepted + cost.num_accepted_tokens
        self.judged = _FORGETTING_ACCEPTANCE * self.judged + cost.num_accepted_tokens + was_rejected


@dataclass
class Average:
    """A mean in which older values count less. It starts as that of `weight` times `value`."""

    value: float
    weight: float = 1.0

    def add(self, value: float) -> None:
        self.weight = _FORGETTING_COSTS * self.weight + 1.0
        self.value += (value - self.value) / self.weight


@dataclass
class Experience:
    """What all requests to a pair have shown; a new request starts from it."""

    token_ns: float = 0.0  # what a token more costs an undisturbed pass; 0 if unknown
    verify_ns: PassTime = field(init=False)
    sessions: float = 1.0  # that share a pass
    num_requests: int = 0
    draft_ns: Line = field(default_factory=lambda: Line(origin=0.05))
    alone_ns: float = 0.0  # what the target alone took, as it was judged at its last step alone
    # The share of steps that nothing had been predrafted for.
    misses: Average = field(default_factory=lambda: Average(_FIRST_MISSES, 2.0))
    misses_since_wait: int = 0
    # What a step waited for what was under way; and how many tokens are predrafted in time.
    awaited_ns: Average = field(default_factory=lambda: Average(0.0))
    ready: Average = field(default_factory=lambda: Average(1.0))
    # What probes have cost and is not made up for yet, in steps of the target alone.
    probe_debt: float = 0.0
    acceptance: Acceptance = field(default_factory=Acceptance)  # of the latest text
    usual_acceptance: float = _FIRST_ACCEPTANCE  # of those before it
    _counted: Acceptance | None = None  # among these
    distance: Distance = field(default_factory=Distance)
    length: int = FIRST_LENGTH
    num_plain_steps: int = 0
    has_draft_steps: bool = False
    has_accepted: bool = False  # any token of the draft's
    steps_since_probe: int = 0
    probes_in_vain: int = 0  # one after another, of which nothing was accepted

    def __post_init__(self) -> None:
        self.verify_ns = PassTime(self.token_ns)

    @property
    def shares_passes(self) -> bool:
        """Whether many sessions share the target's passes."""
        return self.sessions >= MANY_SESSIONS

    def begin_text(self) -> Acceptance:
        """What another text starts from; one that suits the draft badly says little of it."""
        if self.acceptance is not self._counted:  # once for each text that showed any
            self._counted = self.acceptance
            self.usual_acceptance += _LATEST_TEXT * (self.acceptance.rate - self.usual_acceptance)
        return Acceptance(self.usual_acceptance * PRIOR_TOKENS, PRIOR_TOKENS)

    def observe(self, cost: StepCost) -> None:
        """Learns from a step of any request, unless it was of a kind that is rare.

        Such as one beside a draft that still reads, or one that only waited for a far target.
        """
        if cost.catches_up or self._waits_once_in_many(cost):
            return  # that is not what such steps take
        num_tokens = cost.batch_tokens or 1 + cost.num_draft_tokens
        share = 1 / max(1, cost.batch_sessions)
        if cost.draft_rests and self.has_slowed:
            self.verify_ns.doubt(self.verification_ns(0, Beside.REST) - self.alone_ns)
        self.verify_ns.add(num_tokens, cost.beside, cost.verify_ns, share)
        self.sessions += (1 - _FORGETTING_COSTS) * (max(1, cost.batch_sessions) - self.sessions)
        if cost.is_cache_miss or cost.is_cache_hit:
            self.misses.add(cost.is_cache_miss)
            self.awaited_ns.add(cost.awaited_ns)
        if cost.is_cache_miss:
            self.misses_since_wait += 1
        if cost.num_draft_tokens == 0:
            if cost.draft_rests:
                self.num_plain_steps += 1
                self.alone_ns = self.verification_ns(0, Beside.REST)
        elif not cost.match_length:
            self.has_draft_steps = True
            self.has_accepted |= cost.num_accepted_tokens > 0
            if not cost.is_cache_hit:
                self.misses_since_wait = 0
                self.draft_ns.add(cost.num_draft_tokens, cost.draft_ns)

    def _waits_once_in_many(self, cost: StepCost) -> bool:
        """Whether a far target goes on alone behind this step, so that the next need not wait."""
        is_plain = cost.draft_rests and not cost.num_draft_tokens
        return is_plain and self.distance.is_far and not cost.was_unasked

    def steps_lost(self, cost: StepCost) -> float:
        """By how much a step took longer than the same tokens would without the draft.

        In steps of the target alone. What was looked up would have been looked up all the same.
        """
        alone_ns = max(1.0, self.alone_ns)
        if cost.match_length:
            num_tokens = cost.batch_tokens or 1 + cost.num_draft_tokens
            return (cost.ns - self.verify_ns.at(num_tokens, Beside.REST)) / alone_ns
        return cost.ns / alone_ns - (1 + cost.num_accepted_tokens)

    @property
    def has_slowed(self) -> bool:
        """Whether the target seems to have got slower since it was last alone."""
        return self.verification_ns(0, Beside.REST) > _SLOWED * self.alone_ns > 0

    def verification_ns(self, length: float, beside: Beside) -> float:
        """What a verification of so many draft tokens takes.

        Sessions that share a pass all wait for its tokens. What is good for one is what
        would be good if all did the same.
        """
        return self.verify_ns.at(self.sessions * (1 + length), beside)
