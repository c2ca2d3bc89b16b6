"""How many draft tokens the next step asks for.

The number with the most committed tokens per time, by what the steps so far have
shown: how often the target accepts, and what drafting and verifying take. It is 0
where speculation costs more than it gives, as it may when many sessions share the
passes of the target: a token more is then a wait for all of them. Now and then a step
probes the other side: one without draft tokens where there are some, one with one where
there are none.

Tokens that were looked up in the text cost no drafting, so they have a length of their
own: that of the match, or less where their verification is not worth it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.distance import Distance

MAX_LENGTH = 16
FIRST_LENGTH = 1

# What an old step counts, step by step. A request's own acceptance says more about it.
_FORGETTING_COSTS = 0.98
_FORGETTING_ACCEPTANCE = 0.96
# What is looked up is taken to be accepted so often until the text shows otherwise.
_FIRST_LOOKUP_ACCEPTANCE = 0.6
# Points that vary less than this in x, squared, say nothing about a slope.
_LEAST_SPREAD = 1e-2
# A text's acceptance is taken from others before it, as if so many tokens had shown it.
_PRIOR_TOKENS = 6.0
_FIRST_ACCEPTANCE = 0.7

# The length changes for a gain of at least so much, and by so many tokens at most.
_WORTHWHILE_GAIN = 1.03
_LONGEST_MOVE = 2
_STEPS_BETWEEN_PROBES = 32
_REQUESTS_BETWEEN_PROBES = 16
_MANY_SESSIONS = 2.0
# As long as the target alone was never tried, nobody knows what drafts cost it. It goes first:
# a step of its own is the one thing that cannot be slower than the target alone.
_STEPS_TO_FIRST_PROBE = 0


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step took, in nanoseconds as the loop waited, and what it brought."""

    num_draft_tokens: int
    num_accepted_tokens: int
    draft_ns: int
    verify_ns: int
    was_prepared: bool = False
    match_length: int = 0
    """For draft tokens that were looked up: how many tokens before them matched."""
    batch_tokens: int = 0
    """Of the verification's pass, with those of all sessions that shared it; 0 if unknown."""
    batch_sessions: int = 1


class LengthPolicy(Protocol):
    """Chooses draft lengths for one request."""

    @property
    def uses_draft(self) -> bool:
        """Whether the draft is asked at all, and so must read the prompt."""
        ...

    def next_length(self) -> int: ...

    def lookup_length(self, match_length: int) -> int:
        """How many tokens to take from behind a match of so many tokens in the text."""
        ...

    def observe(self, cost: StepCost) -> None: ...


@dataclass
class Line:
    """A straight line through points of which older ones count less.

    Args:
        origin: what the origin counts beside each point: with some, the line through
            points of one x is a proportion, else it is flat.
        least_variation: in x, as a share of x, that says something about the slope.
    """

    origin: float = 0.0
    least_variation: float = 0.0
    weight: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0

    slope: float = 0.0

    def add(self, x: float, y: float, share: float = 1.0) -> None:
        """Adds a point, or a share of one that others add, too."""
        for name, value in (
            ("weight", 1.0 + self.origin),
            ("x", x),
            ("y", y),
            ("xx", x * x),
            ("xy", x * y),
        ):
            setattr(self, name, _FORGETTING_COSTS**share * getattr(self, name) + share * value)
        spread = self.weight * self.xx - self.x * self.x
        # Long after the last point of another x, the slope is what it last was.
        if spread > max(_LEAST_SPREAD * self.weight, (self.least_variation * self.x) ** 2):
            self.slope = max(0.0, (self.weight * self.xy - self.x * self.y) / spread)

    def at(self, x: float) -> float:
        """The line's height; it never falls."""
        if not self.weight:
            return 0.0
        return max(0.0, (self.y - self.slope * self.x) / self.weight + self.slope * x)


@dataclass
class Acceptance:
    """How often a draft token is accepted, given that those before it were."""

    accepted: float = _FIRST_ACCEPTANCE * _PRIOR_TOKENS
    judged: float = _PRIOR_TOKENS

    @property
    def rate(self) -> float:
        return self.accepted / self.judged

    def add(self, cost: StepCost) -> None:
        was_rejected = cost.num_accepted_tokens < cost.num_draft_tokens
        self.accepted = _FORGETTING_ACCEPTANCE * self.accepted + cost.num_accepted_tokens
        self.judged = _FORGETTING_ACCEPTANCE * self.judged + cost.num_accepted_tokens + was_rejected

    def prior(self) -> Acceptance:
        """Where another text starts."""
        return Acceptance(self.rate * _PRIOR_TOKENS, _PRIOR_TOKENS)


@dataclass
class Experience:
    """What all requests to a pair have shown; a new request starts from it."""

    # By tokens of the pass. Passes of many sessions that differ by a token tell nothing.
    verify_ns: Line = field(default_factory=lambda: Line(least_variation=0.1))
    sessions: float = 1.0  # that share a pass
    num_requests: int = 0
    draft_ns: Line = field(default_factory=lambda: Line(origin=0.05))
    misses: Line = field(default_factory=Line)
    acceptance: Acceptance = field(default_factory=Acceptance)  # of the latest text
    distance: Distance = field(default_factory=Distance)
    length: int = FIRST_LENGTH
    has_plain_steps: bool = False
    has_draft_steps: bool = False
    steps_since_probe: int = 0

    def observe(self, cost: StepCost) -> None:
        num_tokens = cost.batch_tokens or 1 + cost.num_draft_tokens
        self.verify_ns.add(num_tokens, cost.verify_ns, 1 / max(1, cost.batch_sessions))
        self.sessions += (1 - _FORGETTING_COSTS) * (max(1, cost.batch_sessions) - self.sessions)
        if cost.num_draft_tokens == 0:
            self.has_plain_steps = True
            return
        if cost.match_length:
            return
        self.has_draft_steps = True
        self.misses.add(0.0, 0.0 if cost.was_prepared else 1.0)
        if not cost.was_prepared:
            self.draft_ns.add(cost.num_draft_tokens, cost.draft_ns)

    def verification_ns(self, length: int) -> float:
        """What a verification of so many draft tokens takes.

        Sessions that share a pass all wait for its tokens. What is good for one is what
        would be good if all did the same.
        """
        return self.verify_ns.at(self.sessions * (1 + length))

    def step_ns(self, length: int) -> float:
        """What a step with so many draft tokens takes, on average over hits and misses."""
        drafting = self.misses.at(0.0) * self.draft_ns.at(length) if length else 0.0
        return drafting + self.verification_ns(length)


@dataclass(frozen=True)
class FixedLength:
    """The same length at every step. What it takes is experience for others."""

    length: int
    experience: Experience

    @property
    def uses_draft(self) -> bool:
        return self.length > 0

    def next_length(self) -> int:
        return self.length

    def lookup_length(self, match_length: int) -> int:
        return min(self.length, match_length)

    def observe(self, cost: StepCost) -> None:
        self.experience.observe(cost)
        if cost.num_draft_tokens and not cost.match_length:
            self.experience.acceptance.add(cost)


class AdaptiveLength:
    """Moves towards the best length, a little at a time."""

    def __init__(self, experience: Experience) -> None:
        self._experience = experience
        self._acceptance = experience.acceptance.prior()
        self._lookups = Acceptance(_FIRST_LOOKUP_ACCEPTANCE * _PRIOR_TOKENS)
        self._length = experience.length
        # Where speculation does not pay and many are served, all but a few requests
        # spare the draft their prompts.
        is_probe = experience.num_requests % _REQUESTS_BETWEEN_PROBES == 0
        experience.num_requests += 1
        self.uses_draft = self._length > 0 or experience.sessions < _MANY_SESSIONS or is_probe

    def next_length(self) -> int:
        if not self.uses_draft:
            return 0
        is_known = self._experience.has_plain_steps
        patience = _STEPS_BETWEEN_PROBES if is_known else _STEPS_TO_FIRST_PROBE
        if self._experience.steps_since_probe >= patience:
            return 0 if self._length else 1
        return self._length

    def lookup_length(self, match_length: int) -> int:
        rate = self._lookups.rate

        def speed(length: int) -> float:
            return _speed(rate, length, self._experience.verification_ns(length))

        # A match of n tokens promises about n more.
        return max(range(min(match_length, MAX_LENGTH) + 1), key=speed)

    def observe(self, cost: StepCost) -> None:
        self._experience.observe(cost)
        if cost.match_length:
            self._lookups.add(cost)
            return
        if cost.num_draft_tokens:
            self._acceptance.add(cost)
            self._experience.acceptance = self._acceptance
        if not self.uses_draft:
            return
        was_probe = (cost.num_draft_tokens == 0) != (self._length == 0)
        since = self._experience.steps_since_probe
        self._experience.steps_since_probe = 0 if was_probe else since + 1
        if not self._experience.has_draft_steps:
            return  # a draft that has nothing to say, or is lost, teaches nothing
        best = max(range(MAX_LENGTH + 1), key=self.speed)
        if self.speed(best) > _WORTHWHILE_GAIN * self.speed(self._length):
            move = best - self._length
            self._length += max(-_LONGEST_MOVE, min(_LONGEST_MOVE, move))
        self._experience.length = self._length

    def speed(self, length: int) -> float:
        """Committed tokens per nanosecond with drafts of this length."""
        return _speed(self._acceptance.rate, length, self._experience.step_ns(length))


def _speed(acceptance_rate: float, length: int, step_ns: float) -> float:
    """Committed tokens per nanosecond (arXiv 2211.17192)."""
    rate = min(acceptance_rate, 0.999)
    tokens = (1 - rate ** (length + 1)) / (1 - rate)
    return tokens / max(1.0, step_ns)
