"""A draft and a target without models: the loop's partners in unit tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from outrider.acceptance import accept_matching
from outrider.errors import ServiceUnavailable
from outrider.messages import Proposal, Timings, Verdict

NextToken = Callable[[Sequence[int]], int]
"""A model: the token that follows a sequence."""

TIMINGS = Timings(queue_ns=1, forward_ns=2, sample_ns=3, total_ns=10)


class FakeVerifier:
    """Verifies by a function, and fails from call `fails_at` on."""

    def __init__(self, next_token: NextToken, fails_at: int | None = None) -> None:
        self._next_token = next_token
        self._fails_at = fails_at
        self.calls: list[tuple[list[int], tuple[int, ...]]] = []

    async def verify(self, tokens: Sequence[int], draft_token_ids: Sequence[int]) -> Verdict:
        self.calls.append((list(tokens), tuple(draft_token_ids)))
        if self._fails_at is not None and len(self.calls) > self._fails_at:
            raise ServiceUnavailable("the target is gone")
        choices = [
            self._next_token([*tokens, *draft_token_ids[:i]])
            for i in range(len(draft_token_ids) + 1)
        ]
        num_accepted, next_token = accept_matching(draft_token_ids, choices)
        length = len(tokens) + num_accepted
        is_bonus = num_accepted == len(draft_token_ids)
        return Verdict(len(tokens), num_accepted, next_token, is_bonus, length, TIMINGS)


class FakeDrafter:
    """Proposes by a function, and fails from call `fails_at` on."""

    def __init__(
        self, next_token: NextToken, fails_at: int | None = None, max_context_length: int = 1000
    ) -> None:
        self._next_token = next_token
        self._fails_at = fails_at
        self.max_context_length = max_context_length
        self.calls: list[tuple[list[int], int]] = []

    async def propose(self, tokens: Sequence[int], num_speculative_tokens: int) -> Proposal:
        self.calls.append((list(tokens), num_speculative_tokens))
        if self._fails_at is not None and len(self.calls) > self._fails_at:
            raise ServiceUnavailable("the draft is gone")
        sequence = list(tokens)
        for _ in range(num_speculative_tokens):
            sequence.append(self._next_token(sequence))
        draft = tuple(sequence[len(tokens) :])
        length = len(tokens) + max(0, len(draft) - 1)
        return Proposal(len(tokens), draft, length, TIMINGS)
