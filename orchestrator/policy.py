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

from orchestrator.experience import FIRST_LENGTH, PRIOR_TOKENS, Acceptance, Experience, StepCost
from orchestrator.lengths import MAX_LENGTH
from orchestrator.pass_time import Beside
from orchestrator.speed import Speed, num_tokens

# What is looked up is taken to be accepted so often until the text shows otherwise: by itself,
# and where the draft says the same.
_FIRST_LOOKUP_ACCEPTANCE = 0.6
_FIRST_CONFIRMED_ACCEPTANCE = 0.9

# The length changes for a gain of at least so much, and by so many tokens at most.
_WORTHWHILE_GAIN = 1.03
_LONGEST_MOVE = 2
_STEPS_BETWEEN_PROBES = 32
# A target that goes on alone loses a pass and a way to a probe, besides.
_STEPS_BETWEEN_INTERRUPTIONS = 128
# A draft that prepares shows what it is worth from the second step on.
_STEPS_OF_A_PROBE = 4
# A draft of which nothing was ever accepted rests after so many steps of a text. Those that
# nothing was prepared for count: nobody hears what their drafts would have been worth.
_BARREN_STEPS = 8
# Of the time, probes of drafts that do not pay cost so much at most.
_PROBES_COST = 0.01
# A step may be held up by anything, and is no more of a loss than so many.
_MOST_LOST_STEPS = 8.0
_REQUESTS_BETWEEN_PROBES = 16
# After so many probes in vain the draft is no good. It takes more of them if anything of it was
# ever accepted, since then it may be the text. It then has no more than its turn to show
# otherwise: reading prompts beside the target is not free, either.
_MANY_VAIN_PROBES = 2
_MANY_VAIN_PROBES_OF_A_GOOD_DRAFT = 8
# As long as the target alone was hardly tried, nobody knows what drafts cost it. It goes first:
# a step of its own is the one thing that cannot be slower than the target alone. One may have
# been disturbed, so the next are soon, after so many steps times the square of their number.
_FIRST_STEPS = 4
# Without waiting nobody learns what waiting would take now.
_MISSES_BETWEEN_WAITS = 64


class AdaptiveLength:
    """Moves towards the best length, a little at a time.

    Args:
        prepares: the draft works while the target does. What it has not prepared then is
            waited for only where that pays.
    """

    def __init__(self, experience: Experience, prepares: bool = False) -> None:
        self._experience = experience
        self._prepares = prepares
        self._acceptance = experience.begin_text()
        self._speed = Speed(experience, self._acceptance, prepares)
        self._lookups = Acceptance(_FIRST_LOOKUP_ACCEPTANCE * PRIOR_TOKENS)
        self._confirmed_lookups = Acceptance(_FIRST_CONFIRMED_ACCEPTANCE * PRIOR_TOKENS)
        self._length = experience.length
        self._probe_steps = 0  # that are left of a probe
        self._probe_is_in_vain = True
        self._barren_steps = 0
        # Where speculation does not pay and many are served, or the draft is no good, all but
        # a few requests leave the draft alone.
        has_turn = experience.num_requests % _REQUESTS_BETWEEN_PROBES == 0
        experience.num_requests += 1
        is_alone = not experience.shares_passes
        is_no_good = experience.probes_in_vain >= (
            _MANY_VAIN_PROBES_OF_A_GOOD_DRAFT if experience.has_accepted else _MANY_VAIN_PROBES
        )
        self.uses_draft = self._length > 0 or (is_alone and not is_no_good) or has_turn
        is_retried = has_turn and is_alone and is_no_good
        if self.uses_draft and self._length == 0 and (is_retried or self._opens_with_probe):
            self._begin_probe(self._steps_of_a_probe)

    @property
    def is_at_rest(self) -> bool:
        return not self.uses_draft or (self._length == 0 and self._probe_steps == 0)

    @property
    def shares_passes(self) -> bool:
        return self._experience.shares_passes

    def next_length(self) -> int:
        if not self.uses_draft:
            return 0
        if self._probe_steps == 0 and self._steps_to_probe <= 0:
            # A far target that goes on alone shows what that is worth from the second step on, too.
            steps_alone = _STEPS_OF_A_PROBE if self._experience.distance.is_far else 1
            self._begin_probe(steps_alone if self._length else self._steps_of_a_probe)
        return int(self._length == 0) if self._probe_steps else self._length

    @property
    def _opens_with_probe(self) -> bool:
        """Another text may suit the draft better."""
        experience = self._experience
        if not self._prepares or experience.num_plain_steps == 0 or experience.probes_in_vain:
            return False
        if experience.distance.is_far:
            return False  # it would hold up a target that goes on alone
        # It reads the prompt while the target does, so sooner is better than later.
        is_nearly_due = self._steps_to_probe <= self._patience / 2
        return is_nearly_due and not experience.shares_passes

    @property
    def _steps_of_a_probe(self) -> int:
        return _STEPS_OF_A_PROBE if self._prepares else 1

    def _begin_probe(self, num_steps: int) -> None:
        self._experience.steps_since_probe = 0  # one request probes for all
        self._probe_steps = num_steps
        self._probe_is_in_vain = True

    @property
    def acceptance_rate(self) -> float:
        return self._acceptance.rate

    def prepared_length(self) -> int:
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
        if not self._prepares or not is_known:
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
        if self._length == 0 and self._experience.alone_ns and not cost.draft_rests:
            lost_steps = min(_MOST_LOST_STEPS, self._experience.steps_lost(cost))
            self._experience.probe_debt = max(0.0, self._experience.probe_debt + lost_steps)
        if cost.match_length:
            (self._confirmed_lookups if cost.is_confirmed else self._lookups).add(cost)
            return
        if cost.num_draft_tokens:
            self._acceptance.add(cost)
            self._experience.acceptance = self._acceptance
        if cost.was_prepared:
            # If all that was wanted is there, there might be more.
            is_all = cost.num_draft_tokens >= self.prepared_length()
            self._experience.ready.add(cost.num_draft_tokens + is_all)
        if cost.num_accepted_tokens and not self._experience.shares_passes:
            self._experience.probes_in_vain = 0  # with many, it is not the draft that is to blame
            self._probe_is_in_vain = False
        if not self.uses_draft:
            return
        if not cost.catches_up:
            self._count_probe(was_probe=cost.draft_rests != (self._length == 0))
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
            self._probe_steps = 0
        self._experience.length = self._length

    def _candidates(self) -> list[int]:
        """Lengths to compare: none, this one, and others near and far; all would take too long."""
        moves = (self._length + sign * far for far in (1, 2, 4, 8) for sign in (-1, 1))
        return [0, self._length, *(length for length in moves if 0 < length <= MAX_LENGTH)]

    @property
    def _patience(self) -> int:
        """The steps of all requests from one probe to the next."""
        if self._length and self._experience.has_slowed:
            return _FIRST_STEPS  # because of the machine, or of the draft: a step alone will tell
        if self._length:
            return min(_STEPS_BETWEEN_PROBES, _FIRST_STEPS * self._experience.num_plain_steps**2)
        goes_on = self._experience.distance.is_far or self._experience.shares_passes
        least = _STEPS_BETWEEN_INTERRUPTIONS if goes_on else _STEPS_BETWEEN_PROBES
        # What a probe would lose by what drafts have cost: so much at each token.
        num_probed = self._steps_of_a_probe * (1 + self.acceptance_rate)
        speeds = self._speed.of([0, 1])
        return max(least, round(num_probed * (speeds[0] / speeds[1] - 1) / _PROBES_COST))

    @property
    def _steps_to_probe(self) -> float:
        """Until one is due. What earlier ones have cost is made up for first."""
        left = self._patience - self._experience.steps_since_probe
        return left if self._length else max(left, self._experience.probe_debt / _PROBES_COST)

    def _count_probe(self, was_probe: bool) -> None:
        self._experience.steps_since_probe += 1
        self._experience.probe_debt = max(0.0, self._experience.probe_debt - _PROBES_COST)
        if was_probe and self._probe_steps:
            self._probe_steps -= 1
            if self._probe_steps == 0 and self._length == 0:
                self._experience.probes_in_vain += self._probe_is_in_vain

    def _is_barren(self, cost: StepCost) -> bool:
        """Whether the draft has brought nothing in this text, nor ever. Then probes decide."""
        self._barren_steps += cost.num_draft_tokens > 0 or cost.was_missed
        return not self._experience.has_accepted and self._barren_steps >= _BARREN_STEPS

    def speed(self, length: int) -> float:
        """Committed tokens per nanosecond with drafts of this length; see `Speed.at`."""
        return self._speed.at(length)
