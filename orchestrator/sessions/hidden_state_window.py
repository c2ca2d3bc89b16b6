"""The target's hidden states of a text's most recent tokens, buffered for a feature draft."""

import asyncio

from outrider.errors import HiddenStateMismatch, OutriderError
from outrider.protocol.hidden_states import HiddenStates, HiddenStateSpec
from outrider.protocol.messages import ModelInfo


class HiddenStateWindow:
    """Keeps the hidden states of the last `spec.window` tokens, as uninterpreted bytes.

    From these, a draft that starts late or was restarted can read the text.
    """

    def __init__(self, spec: HiddenStateSpec) -> None:
        self.spec = spec
        self._first = self._end = 0  # indices of the tokens whose rows are kept
        self._rows = bytearray()
        self._grown = asyncio.Event()

    def add(self, states: HiddenStates) -> None:
        """Adds those of a result. They replace what is kept of the same and of later tokens.

        Raises OutriderError if their size differs from the spec's.
        """
        row_bytes = self.spec.row_bytes
        if len(states.data) != states.num_tokens * row_bytes:
            raise OutriderError("the target gives hidden states of another size than it was asked")
        if not self._first <= states.first_index <= self._end:
            self._rows.clear()
            self._first = states.first_index
        del self._rows[(states.first_index - self._first) * row_bytes :]
        self._rows += states.data
        self._end = states.end
        num_spare = max(0, self._end - self._first - self.spec.window)
        del self._rows[: num_spare * row_bytes]
        self._first += num_spare
        self._grown.set()

    def between(self, first: int, end: int) -> HiddenStates:
        """Those of the tokens in [first, end), without the first ones that are no longer kept.

        Raises OutriderError if the last one is not kept.
        """
        if end and not self._first < end <= self._end:
            raise OutriderError("the target does not give the hidden states that it was asked for")
        row_bytes = self.spec.row_bytes
        first = max(first, self._first)
        rows = self._rows[(first - self._first) * row_bytes : (end - self._first) * row_bytes]
        return HiddenStates(first, end - first, bytes(rows))

    async def until(self, end: int) -> None:
        """Returns once those of all tokens before `end` have been added."""
        while self._end < end:
            self._grown.clear()
            await self._grown.wait()


def check_gives(target: ModelInfo, draft: ModelInfo) -> None:
    """Raises HiddenStateMismatch if `target` does not provide what `draft` reads."""
    spec = draft.reads_hidden_states
    if spec is None:
        return
    reads = f"the draft {draft.model_id} reads hidden states of its target"
    if not target.gives_hidden_states:
        raise HiddenStateMismatch(
            f"{reads}, which {target.model_id} on {target.device or 'its device'} does not give"
        )
    if spec.hidden_size != target.hidden_size:
        raise HiddenStateMismatch(
            f"{reads}, of size {spec.hidden_size}; those of {target.model_id} have "
            f"{target.hidden_size}"
        )
    layers = spec.of_target(target.num_layers).layers
    if not all(0 <= layer < target.num_layers for layer in layers):
        raise HiddenStateMismatch(
            f"{reads}, of the layers {', '.join(map(str, layers))}; {target.model_id} has "
            f"{target.num_layers} layers"
        )
