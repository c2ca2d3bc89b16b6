"""When to try the other side: a step alone where there are drafts, a few with one where not."""

from __future__ import annotations

from orchestrator.policy.experience import Acceptance, Experience, StepCost
from orchestrator.policy.speed import Speed

_STEPS_BETWEEN = 32
# A target that goes on alone loses a pass and a way to a probe, besides.
_STEPS_BETWEEN_INTERRUPTIONS = 128
# A draft that predrafts shows what it is worth from the second step on.
_STEPS_WITH_A_DRAFT = 4
# Of the time, probes of drafts that do not pay cost so much at most.
_SHARE_OF_TIME = 0.01
# A step may be held up by anything, and is no more of a loss than so many.
_MOST_LOST_STEPS = 8.0
# After so many probes in vain the draft is no good. It takes more of them if anything of it was
# ever accepted, since then it may be the text. It then has no more than its turn to show
# otherwise: reading prompts beside the target is not free, either.
_MANY_IN_VAIN = 2
_MANY_IN_VAIN_OF_A_GOOD_DRAFT = 8
# As long as the target alone was hardly tried, nobody knows what drafts cost it. It goes first:
# a step of its own is the one thing that cannot be slower than the target alone. One may have
# been disturbed, so the next are soon, after so many steps times the square of their number.
_FIRST_STEPS = 4


class Probes:
    """Of one text. What they have cost and shown is experience, for all requests to a pair."""

    def __init__(
        self, experience: Experience, speed: Speed, acceptance: Acceptance, predrafts: bool
    ) -> None:
        self._experience = experience
        self._speed = speed
        self._acceptance = acceptance
        self._predrafts = predrafts
        self._steps = 0  # that are left of one
        self._is_in_vain = True

    @property
    def is_probing(self) -> bool:
        return self._steps > 0

    @property
    def draft_has_failed(self) -> bool:
        """Whether the draft is no good, by all that it has shown."""
        experience = self._experience
        many = _MANY_IN_VAIN_OF_A_GOOD_DRAFT if experience.has_accepted else _MANY_IN_VAIN
        return experience.probes_in_vain >= many

    @property
    def is_due_at_beginning(self) -> bool:
        """Whether a text without drafts begins with one: it may suit the draft better."""
        experience = self._experience
        if not self._predrafts or experience.num_plain_steps == 0 or experience.probes_in_vain:
            return False
        if experience.distance.is_far:
            return False  # it would hold up a target that goes on alone
        # The draft reads the prompt while the target does, so sooner is better than later.
        is_nearly_due = self._steps_to_next(0) <= self._patience(0) / 2
        return is_nearly_due and not experience.shares_passes

    def length(self, chosen: int) -> int:
        """The draft length of the next step: the chosen one, or another in a probe of that."""
        if self._steps == 0 and self._steps_to_next(chosen) <= 0:
            self.begin(chosen)
        if self._steps == 0:
            return chosen
        return 0 if chosen else 1

    def begin(self, chosen: int) -> None:
        """Begins one of the other side of a length."""
        self._experience.steps_since_probe = 0  # one request probes for all
        self._is_in_vain = True
        self._steps = self._steps_with_a_draft
        if chosen:
            # A far target that goes on alone shows what that is worth from the second step on, too.
            self._steps = _STEPS_WITH_A_DRAFT if self._experience.distance.is_far else 1

    def end(self) -> None:
        self._steps = 0

    def observe(self, cost: StepCost, chosen: int) -> None:
        """Learns what a step has lost and shown, whichever it was."""
        experience = self._experience
        if chosen == 0 and experience.alone_ns and not cost.draft_rests:
            lost_steps = min(_MOST_LOST_STEPS, experience.steps_lost(cost))
            experience.probe_debt = max(0.0, experience.probe_debt + lost_steps)
        if cost.match_length == 0 and cost.num_accepted_tokens and not experience.shares_passes:
            experience.probes_in_vain = 0  # with many, it is not the draft that is to blame
            self._is_in_vain = False

    def count(self, cost: StepCost, chosen: int) -> None:
        """Counts a step, of a probe or between two."""
        experience = self._experience
        experience.steps_since_probe += 1
        experience.probe_debt = max(0.0, experience.probe_debt - _SHARE_OF_TIME)
        was_probe = cost.draft_rests != (chosen == 0)
        if was_probe and self._steps:
            self._steps -= 1
            if self._steps == 0 and chosen == 0:
                experience.probes_in_vain += self._is_in_vain

    @property
    def _steps_with_a_draft(self) -> int:
        return _STEPS_WITH_A_DRAFT if self._predrafts else 1

    def _patience(self, chosen: int) -> int:
        """The steps of all requests from one to the next."""
        experience = self._experience
        if chosen and experience.has_slowed:
            return _FIRST_STEPS  # because of the machine, or of the draft: a step alone will tell
        if chosen:
            return min(_STEPS_BETWEEN, _FIRST_STEPS * experience.num_plain_steps**2)
        goes_on = experience.distance.is_far or experience.shares_passes
        least = _STEPS_BETWEEN_INTERRUPTIONS if goes_on else _STEPS_BETWEEN
        # What one would lose by what drafts have cost: so much at each token.
        num_probed = self._steps_with_a_draft * (1 + self._acceptance.rate)
        speeds = self._speed.of([0, 1])
        return max(least, round(num_probed * (speeds[0] / speeds[1] - 1) / _SHARE_OF_TIME))

    def _steps_to_next(self, chosen: int) -> float:
        """Until one is due. What earlier ones have cost is made up for first."""
        left = self._patience(chosen) - self._experience.steps_since_probe
        return left if chosen else max(left, self._experience.probe_debt / _SHARE_OF_TIME)
