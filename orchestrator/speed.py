"""What draft lengths are worth, by what steps have cost and brought so far."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.experience import Acceptance, Experience
from orchestrator.pass_time import Beside


class Speed:
    """Of one text: committed tokens per nanosecond, with drafts of any length.

    Args:
        acceptance: of the text's draft tokens.
        prepares: the draft works while the target does.
    """

    def __init__(self, experience: Experience, acceptance: Acceptance, prepares: bool) -> None:
        self._experience = experience
        self._acceptance = acceptance
        self._prepares = prepares

    def at(self, length: int) -> float:
        """With drafts of this length, misses included.

        Where the draft prepares, it is the length of what is waited for on a miss.
        """
        experience = self._experience
        if length == 0:
            return 1 / max(1.0, experience.verification_ns(0, Beside.REST))
        if not self._prepares:
            verify_ns = experience.verification_ns(length, Beside.WORK)
            step_ns = verify_ns + experience.draft_ns.at(length)
            return self._num_tokens(length) / max(1.0, step_ns)
        # Of what is ready the loop takes what pays; on a miss it waits or not, as is better.
        ready = experience.ready.value
        taken = (*range(1, int(ready) + 1), ready)
        return max(self._prepared(hit, miss) for hit in taken for miss in (length, 0))

    def _prepared(self, on_hit: float, on_miss: int) -> float:
        """With so many draft tokens at steps that find some prepared, and at the others."""
        experience = self._experience
        misses = experience.misses.value
        draft_ns = experience.draft_ns.at(on_miss) if on_miss else 0.0
        hit_ns = experience.verification_ns(on_hit, Beside.WORK_AFTER_HIT)
        miss_ns = experience.verification_ns(on_miss, Beside.WORK)
        step_ns = (1 - misses) * hit_ns + misses * (draft_ns + miss_ns)
        committed = (1 - misses) * self._num_tokens(on_hit) + misses * self._num_tokens(on_miss)
        return committed / max(1.0, experience.awaited_ns.value + step_ns)

    def most_gainful(self, most: int, speed: float, draft_ns: Callable[[int], float]) -> int:
        """The length, up to `most`, that gives most tokens more than the time does at `speed`.

        Args:
            draft_ns: how long drafts of a length are waited for.
        """

        def gain(length: int) -> float:
            verify_ns = self._experience.verification_ns(length, Beside.WORK)
            return self._num_tokens(length) - speed * (draft_ns(length) + verify_ns)

        return max(range(most + 1), key=gain)

    def patience_ns(self, speed: float) -> float:
        """As long as a draft token is worth where tokens are committed at `speed`."""
        experience = self._experience
        without_ns, with_ns = (experience.verification_ns(length, Beside.WORK) for length in (0, 1))
        return max(0.0, self._acceptance.rate / speed - (with_ns - without_ns))

    def _num_tokens(self, length: float) -> float:
        return num_tokens(self._acceptance.rate, length)


def num_tokens(acceptance_rate: float, length: float) -> float:
    """Committed tokens of a step, on average (arXiv 2211.17192)."""
    rate = min(acceptance_rate, 0.999)
    return float((1 - rate ** (length + 1)) / (1 - rate))
