"""What draft lengths are worth, by what steps so far have cost and brought."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from orchestrator.policy.experience import Acceptance, Experience
from orchestrator.policy.pass_time import Beside


@dataclass(frozen=True, slots=True)
class Expected:
    """Of a step: the tokens that it commits and the nanoseconds that it takes, on average."""

    num_tokens: float
    ns: float


class Speed:
    """Of one text: committed tokens per nanosecond, with drafts of any length.

    It is asked between a result and the next verification, so it may not take long itself.

    Args:
        acceptance: of the text's draft tokens.
        predrafts: the draft works while the target does.
    """

    def __init__(self, experience: Experience, acceptance: Acceptance, predrafts: bool) -> None:
        self._experience = experience
        self._acceptance = acceptance
        self._predrafts = predrafts

    def at(self, length: int) -> float:
        """With drafts of this length, misses included.

        Where the draft predrafts, it is the length of what is waited for on a miss.
        """
        return self.of([length])[length]

    def of(self, lengths: Iterable[int]) -> dict[int, float]:
        """The speed at each of these lengths."""
        if not self._predrafts:
            return {length: self._sequential(length) for length in lengths}
        # Of what is ready the loop takes what pays; on a miss it waits or not, as is better.
        ready = self._experience.ready.value
        taken = (*range(1, int(ready) + 1), ready)
        hits = [self._step(length, Beside.WORK_AFTER_HIT) for length in taken]
        without_waiting = self._predrafted(hits, 0)
        return {
            length: max(without_waiting, self._predrafted(hits, length)) if length else self._alone
            for length in lengths
        }

    @property
    def _alone(self) -> float:
        return 1 / max(1.0, self._experience.verification_ns(0, Beside.REST))

    def _sequential(self, length: int) -> float:
        if length == 0:
            return self._alone
        step = self._step(length, Beside.WORK)
        return step.num_tokens / max(1.0, step.ns + self._experience.draft_ns.at(length))

    def _predrafted(self, hits: Sequence[Expected], on_miss: int) -> float:
        """With the best of `hits` where some are predrafted, and so many draft tokens elsewhere."""
        experience = self._experience
        misses = experience.misses.value
        miss = self._step(on_miss, Beside.WORK)
        draft_ns = experience.draft_ns.at(on_miss) if on_miss else 0.0
        others_ns = experience.awaited_ns.value + misses * (draft_ns + miss.ns)
        return max(
            ((1 - misses) * hit.num_tokens + misses * miss.num_tokens)
            / max(1.0, (1 - misses) * hit.ns + others_ns)
            for hit in hits
        )

    def most_gainful(self, most: int, speed: float, draft_ns: Callable[[int], float]) -> int:
        """The length, up to `most`, that gives most tokens more than the time does at `speed`.

        Args:
            draft_ns: how long drafts of a length are waited for.
        """

        def gain(length: int) -> float:
            step = self._step(length, Beside.WORK)
            return step.num_tokens - speed * (draft_ns(length) + step.ns)

        return max(range(most + 1), key=gain)

    def patience_ns(self, speed: float) -> float:
        """As long as a draft token is worth where tokens are committed at `speed`."""
        experience = self._experience
        without_ns, with_ns = (experience.verification_ns(length, Beside.WORK) for length in (0, 1))
        return max(0.0, self._acceptance.rate / speed - (with_ns - without_ns))

    def _step(self, length: float, beside: Beside) -> Expected:
        """What a verification of so many draft tokens brings and takes."""
        tokens = num_tokens(self._acceptance.rate, length)
        return Expected(tokens, self._experience.verification_ns(length, beside))


def num_tokens(acceptance_rate: float, length: float) -> float:
    """Committed tokens of a step, on average (arXiv 2211.17192)."""
    rate = min(acceptance_rate, 0.999)
    return float((1 - rate ** (length + 1)) / (1 - rate))
