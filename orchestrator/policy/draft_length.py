"""What the loop asks about draft lengths, and the simplest answer: always the same one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.policy.experience import Acceptance, Experience, StepCost

MAX_LENGTH = 16


class LengthPolicy(Protocol):
    """Chooses draft lengths for one request."""

    @property
    def uses_draft(self) -> bool:
        """Whether the draft may be asked at all."""
        ...

    @property
    def is_at_rest(self) -> bool:
        """Whether the draft is left alone for now, and need not read the prompt yet."""
        ...

    @property
    def shares_passes(self) -> bool:
        """Whether many sessions share the target's passes."""
        ...

    def next_length(self) -> int:
        """How many draft tokens the next step wants; asked once a step, as it may begin a probe."""
        ...

    def predrafted_length(self) -> int:
        """How many tokens are worth verifying that are predrafted, and cost no waiting."""
        ...

    @property
    def acceptance_rate(self) -> float:
        """Of draft tokens behind accepted ones."""
        ...

    def missed_length(self, length: int) -> int:
        """How many of `length` tokens to wait for at a step that none are predrafted for."""
        ...

    def patience_ns(self) -> float:
        """How long to wait for what the draft is predrafting when the result comes."""
        ...

    def lookup_length(self, match_length: int, is_confirmed: bool) -> int:
        """How many tokens to take from behind a match of so many tokens in the text.

        Args:
            is_confirmed: whether the draft has predrafted the first of them, too.
        """
        ...

    def observe(self, cost: StepCost) -> None:
        """Learns what the step took and brought; called once its result is there."""
        ...


@dataclass
class FixedLength:
    """The same length at every step. What it takes is experience for others."""

    length: int
    experience: Experience
    _acceptance: Acceptance = field(init=False)  # in this text

    def __post_init__(self) -> None:
        self._acceptance = self.experience.begin_text()

    @property
    def uses_draft(self) -> bool:
        return self.length > 0

    @property
    def is_at_rest(self) -> bool:
        return self.length == 0

    @property
    def shares_passes(self) -> bool:
        return self.experience.shares_passes

    def next_length(self) -> int:
        return self.length

    def predrafted_length(self) -> int:
        return self.length

    @property
    def acceptance_rate(self) -> float:
        return self._acceptance.rate

    def missed_length(self, length: int) -> int:
        return length

    def patience_ns(self) -> float:
        return self.experience.draft_ns.at(1)  # to ask takes no less

    def lookup_length(self, match_length: int, is_confirmed: bool) -> int:
        return min(self.length, match_length)

    def observe(self, cost: StepCost) -> None:
        self.experience.observe(cost)
        if cost.num_draft_tokens and not cost.match_length:
            self._acceptance.add(cost)
            self.experience.acceptance = self._acceptance
