"""Sequence sync: what a service holds of the sequence, as far as the loop knows."""

from collections.abc import Sequence


class SequenceSync:
    """Turns "these are all committed tokens" into "keep so many, append these".

    A service holds the tokens that were committed when it was last called, and
    maybe some draft tokens behind them.
    """

    def __init__(self) -> None:
        self._num_committed = 0
        self._draft: Sequence[int] = ()

    def difference(self, tokens: Sequence[int]) -> tuple[int, Sequence[int]]:
        """How many of `tokens` the service can keep, and those to append: at least one."""
        num_kept = self._num_committed
        for draft in self._draft:
            if num_kept >= len(tokens) or tokens[num_kept] != draft:
                break
            num_kept += 1
        num_kept = min(num_kept, len(tokens) - 1)
        return num_kept, tokens[num_kept:]

    def hold(self, tokens: Sequence[int], draft: Sequence[int], sequence_length: int) -> None:
        """Notes that the service now holds `sequence_length` tokens of `tokens` and `draft`."""
        self._num_committed = len(tokens)
        self._draft = draft[: sequence_length - len(tokens)]
