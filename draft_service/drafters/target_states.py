"""The target's hidden states that a session of a feature draft has received."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outrider.errors import InvalidRequest
from outrider.protocol.hidden_states import HiddenStates

# Above all that models have; products of larger numbers might overflow.
_LARGEST = 1e6


class TargetStates:
    """The hidden states of the tokens in [origin, end), a row for each.

    Args:
        width: the length of a row.
    """

    def __init__(self, width: int) -> None:
        self.origin = self.end = 0
        self._width = width
        self._first = 0  # of the rows that are kept
        self._rows = np.empty((0, width), np.float32)

    def take(self, context_length: int, states: HiddenStates | None) -> bool:
        """Keeps the rows of the first `context_length` tokens, and appends `states`.

        If there is a gap between the two, drops the former and starts again with `states`.

        Returns whether it did. Raises InvalidRequest for rows of another size.
        """
        num_kept = min(self.end, context_length) - self._first
        if states is None or not states.num_tokens:
            states = HiddenStates(max(0, self._first + num_kept), 0, b"")
        rows, first = self._read(states), states.first_index
        is_new = num_kept < 0 or first > self._first + num_kept
        if is_new:
            self.origin = self._first = first
            self._rows = rows
        else:
            num_known = self._first + num_kept - first
            self._rows = np.concatenate((self._rows[:num_kept], rows[num_known:]))
        self.end = self._first + len(self._rows)
        return is_new

    def _read(self, states: HiddenStates) -> NDArray[np.float32]:
        if len(states.data) != 2 * self._width * states.num_tokens:
            raise InvalidRequest(
                f"hidden states of {states.num_tokens} tokens have {len(states.data)} bytes "
                f"instead of {self._width} numbers each"
            )
        if not states.num_tokens:
            return np.empty((0, self._width), np.float32)
        # By numpy: torch would keep workers for this thread, which slow down those of the engine's.
        bits = np.frombuffer(states.data, "<u2").astype(np.uint32) << 16
        # A target with damaged weights gives none to its own results. A draft may be wrong.
        numbers = np.nan_to_num(bits.view(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        return numbers.clip(-_LARGEST, _LARGEST).reshape(-1, self._width)

    def rows(self, begin: int, end: int) -> Tensor:
        """The rows of the tokens in [begin, end): [num_tokens, width]."""
        rows = self._rows[max(0, begin - self._first) : max(0, end - self._first)]
        return torch.from_numpy(rows)

    def drop_before(self, index: int) -> None:
        """Drops the rows of the tokens before `index`."""
        if index > self._first:
            self._rows = self._rows[index - self._first :].copy()
            self._first = min(index, self.end)
