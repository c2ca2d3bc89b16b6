"""Sequence sync: which tokens of the sequence a service holds."""

from collections.abc import Sequence


class SequenceSync:
    """Turns all committed tokens into the update of one service: how many to keep, which to append.

    A service holds the tokens that were committed at its last request, and possibly draft tokens
    after them. After a rejection it keeps the tokens up to the last accepted one, and appends the
    recovered token.
    """

    def __init__(self) -> None:
        self._num_committed = 0
        self._draft: Sequence[int] = ()

    def difference(self, tokens: Sequence[int]) -> tuple[int, Sequence[int]]:
        """How many of `tokens` the service keeps, and those to append, at least one."""
        num_kept = self._num_committed
        for draft in self._draft:
            if num_kept >= len(tokens) or tokens[num_kept] != draft:
                break
            num_kept += 1
        num_kept = min(num_kept, len(tokens) - 1)
        return num_kept, tokens[num_kept:]

    def hold(self, tokens: Sequence[int], draft: Sequence[int], sequence_length: int) -> None:
        """Notes that the service now holds the first `sequence_length` of `tokens` + `draft`."""
        self._num_committed = len(tokens)
        self._draft = draft[: sequence_length - len(tokens)]
