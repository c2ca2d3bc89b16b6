"""How many draft tokens the next step asks for.

The number with the most committed tokens per time, by what the steps so far have
shown: how often the target accepts, and what drafting and verifying take. It is 0
where speculation costs more than it gives, as it may when many sessions share the
passes of the target: a token more is then a wait for all of them. Now and then the other
side is probed: a step without draft tokens where there are some, a few with one where there
are none.

Tokens that were looked up in the text cost no drafting, so they have a length of their
own: that of the match, or less where their verification is not worth it.
"""

from __future__ import annotations

from orchestrator.policy.draft_length import MAX_LENGTH
from orchestrator.policy.experience import (
    FIRST_LENGTH,
    PRIOR_TOKENS,
    Acceptance,
    Experience,
    StepCost,
)
from orchestrator.policy.pass_time import Beside
from orchestrator.policy.probes import Probes
from orchestrator.policy.speed import Speed, num_tokens

# What is looked up is taken to be accepted so often until the text shows otherwise: by itself,
# and where the draft says the same.
_FIRST_LOOKUP_ACCEPTANCE = 0.6
_FIRST_CONFIRMED_ACCEPTANCE = 0.9

# The length changes for a gain of at least so much, and by so many tokens at most.
_WORTHWHILE_GAIN = 1.03
_LONGEST_MOVE = 2
# A draft of which nothing was ever accepted rests after so many steps of a text. Those that
# nothing was predrafted for count: nobody hears what their drafts would have been worth.
_BARREN_STEPS = 8
_REQUESTS_BETWEEN_PROBES = 16
# Without waiting nobody learns what waiting would take now.
_MISSES_BETWEEN_WAITS = 64


class AdaptiveLength:
    """Moves towards the best length, a little at a time.

    Args:
        predrafts: the draft works while the target does. What it has not predrafted then is
            waited for only where that pays.
    """

    def __init__(self, experience: Experience, predrafts: bool = False) -> None:
        self._experience = experience
        self._predrafts = predrafts
        self._acceptance = experience.begin_text()
        self._speed = Speed(experience, self._acceptance, predrafts)
        self._probes = Probes(experience, self._speed, self._acceptance, predrafts)
        self._lookups = Acceptance(_FIRST_LOOKUP_ACCEPTANCE * PRIOR_TOKENS)
        self._confirmed_lookups = Acceptance(_FIRST_CONFIRMED_ACCEPTANCE * PRIOR_TOKENS)
        self._length = experience.length
        self._barren_steps = 0
        # Where speculation does not pay and many are served, or the draft is no good, all but
        # a few requests leave the draft alone.
        has_turn = experience.num_requests % _REQUESTS_BETWEEN_PROBES == 0
        experience.num_requests += 1
        is_alone = not experience.shares_passes
        is_no_good = self._probes.draft_has_failed
        self.uses_draft = self._length > 0 or (is_alone and not is_no_good) or has_turn
        is_retried = has_turn and is_alone and is_no_good
        if (
            self.uses_draft
            and self._length == 0
            and (is_retried or self._probes.is_due_at_beginning)
        ):
            self._probes.begin(self._length)

    @property
    def is_at_rest(self) -> bool:
        return not self.uses_draft or (self._length == 0 and not self._probes.is_probing)

    @property
    def shares_passes(self) -> bool:
        return self._experience.shares_passes

    def next_length(self) -> int:
        return self._probes.length(self._length) if self.uses_draft else 0

    @property
    def acceptance_rate(self) -> float:
        return self._acceptance.rate

    def predrafted_length(self) -> int:
        experience = self._experience
        if not experience.verify_ns.num_passes or not experience.has_accepted:
            return FIRST_LENGTH  # until it is known what more costs, and whether it brings anything
        speed = self.speed(self._length)
        return max(1, self._speed.most_gainful(MAX_LENGTH, speed, lambda k: 0.0))

    def missed_length(self, length: int) -> int:
        experience = self._experience
        is_known = experience.draft_ns.weight and experience.misses_since_wait < (
            _MISSES_BETWEEN_WAITS
        )
        if not self._predrafts or not is_known:
            return length
        return self._speed.most_gainful(
            length, self.speed(self._length), lambda k: experience.draft_ns.at(k) if k else 0.0
        )

    def patience_ns(self) -> float:
        return self._speed.patience_ns(self.speed(self._length))

    def lookup_length(self, match_length: int, is_confirmed: bool) -> int:
        rate = (self._confirmed_lookups if is_confirmed else self._lookups).rate
        beside = Beside.WORK if self._length else Beside.REST

        def speed(length: int) -> float:
            verify_ns = self._experience.verification_ns(length, beside)
            return num_tokens(rate, length) / max(1.0, verify_ns)

        # A match of n tokens promises about n more.
        return max(range(min(match_length, MAX_LENGTH) + 1), key=speed)

    def observe(self, cost: StepCost) -> None:
        self._experience.observe(cost)
        self._probes.observe(cost, self._length)
        if cost.match_length:
            (self._confirmed_lookups if cost.is_confirmed else self._lookups).add(cost)
            return
        if cost.num_draft_tokens:
            self._acceptance.add(cost)
            self._experience.acceptance = self._acceptance
        if cost.is_cache_hit:
            # If all that was wanted is there, there might be more.
            is_all = cost.num_draft_tokens >= self.predrafted_length()
            self._experience.ready.add(cost.num_draft_tokens + is_all)
        if not self.uses_draft:
            return
        if not cost.catches_up:
            self._probes.count(cost, self._length)
        if not self._experience.has_draft_steps:
            return  # a draft that has nothing to say, or is lost, teaches nothing
        if self._is_barren(cost):
            self._length = self._experience.length = 0
            return
        speeds = self._speed.of(self._candidates())
        best = max(speeds, key=speeds.__getitem__)
        # What is no faster than the target alone is not tried any longer.
        gain = _WORTHWHILE_GAIN if best else 1.0
        if speeds[best] > gain * speeds[self._length]:
            move = best - self._length
            self._length += max(-_LONGEST_MOVE, min(_LONGEST_MOVE, move))
            self._probes.end()
        self._experience.length = self._length

    def _candidates(self) -> list[int]:
        """Lengths to compare: none, this one, and others near and far; all would take too long."""
        moves = (self._length + sign * far for far in (1, 2, 4, 8) for sign in (-1, 1))
        return [0, self._length, *(length for length in moves if 0 < length <= MAX_LENGTH)]

    def _is_barren(self, cost: StepCost) -> bool:
        """Whether the draft has brought nothing in this text, nor ever. Then probes decide."""
        self._barren_steps += cost.num_draft_tokens > 0 or cost.is_cache_miss
        return not self._experience.has_accepted and self._barren_steps >= _BARREN_STEPS

    def speed(self, length: int) -> float:
        """Committed tokens per nanosecond with drafts of this length; see `Speed.at`."""
        return self._speed.at(length)
