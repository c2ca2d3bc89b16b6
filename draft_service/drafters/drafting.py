"""The job of drafting: reads the context, then drafts token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from outrider.engine.scheduling.job import Job
from outrider.engine.scheduling.sequence import common_length
from outrider.protocol.messages import MAX_NUM_SPECULATIVE_TOKENS, Predraft, SamplingParams
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice, rank_tokens

NUM_RUNNERS_UP = 4

# Tokens of a proposal that are drafted before Python sees them; fewer if it may end early. Other
# sessions' jobs cannot share these passes.
MANY_STEPS = 8
_FEW_STEPS = 4


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a session chooses tokens: its sampling parameters, and the tokens that it may choose."""

    params: SamplingParams
    token_ids: Tensor  # [num_ids], ascending; the logits' first columns are for these
    eos_token_ids: Sequence[int]

    @property
    def spec(self) -> SamplingSpec:
        """The spec with which an engine makes the same choices as `rank`."""
        return SamplingSpec(self.params, self.token_ids.numel(), 1 + NUM_RUNNERS_UP)

    def rank(self, logits: Tensor, index: int) -> list[Choice]:
        """The choice for `index` of the sequence by `logits` [1, num_ids], then its runners-up."""
        logits = logits[:, : self.token_ids.numel()]
        choices = rank_tokens(logits, self.token_ids, self.params, index, 1 + NUM_RUNNERS_UP)
        return self.revise(choices, index)

    def revise(self, choices: list[Choice], index: int) -> list[Choice]:
        """May replace the model's choices for `index`; by default returns them unchanged."""
        return choices


@dataclass
class SlotContent:
    """The tokens that one of a session's slots has read, and the model's choices after them.

    `ranks[i]` are the choices for index i of the sequence, after the tokens before it. `session`
    identifies the session: the index of one of its slots.
    """

    slot: int
    session: int
    first_index = 0
    """The index in the sequence of the slot's first token."""
    token_ids: list[int] = field(default_factory=list)
    ranks: dict[int, list[Choice]] = field(default_factory=dict)

    def num_held(self, token_ids: Sequence[int]) -> int:
        """How many of the first `token_ids` need not be read; at least `first_index`."""
        return common_length(self.token_ids, token_ids)

    def keep(self, length: int) -> None:
        """Drops all but the first `length` tokens."""
        self.token_ids = self.token_ids[:length]
        # A copy, since a dropped job may still write there from the engine's thread.
        ranks = list(self.ranks.items())
        kept = range(length - MAX_NUM_SPECULATIVE_TOKENS, length + 1)  # not yet committed
        self.ranks = {index: choices for index, choices in ranks if index in kept}


class Drafting(Job):
    """Drafts up to `num_tokens` tokens after `sequence`; fewer if the text ends.

    Args:
        content: of the slot to draft in.
        source: of a slot from which the tokens that it has read are copied.
        on_draft: called on the engine's thread after each token; returns whether to continue.
        guesses_bonus: whether the first drafted token is a guess of the bonus token.
        min_confidence: drafting ends when the probability that the target accepts all tokens,
            by the draft's own probabilities, falls below it.
    """

    def __init__(
        self,
        content: SlotContent,
        sequence: Sequence[int],
        num_tokens: int,
        sampler: Sampler,
        source: SlotContent | None = None,
        is_background: bool = False,
        on_draft: Callable[["Drafting"], bool] | None = None,
        guesses_bonus: bool = False,
        min_confidence: float = 0.0,
    ) -> None:
        # The last token is read again if necessary, since its logits are needed.
        last = len(sequence) - 1
        own_length = min(content.num_held(sequence), last)
        start, copy_from = own_length, None
        if source is not None:
            start = max(own_length, min(source.num_held(sequence), last))
            begin = own_length - content.first_index
            copy_from = (source.slot, begin) if start > own_length else None
        super().__init__(
            content.slot,
            start - content.first_index,
            sequence[start:],
            min(1, num_tokens),
            copy_from,
            is_background,
            content.session,
        )
        content.keep(own_length)
        self.draft_token_ids: list[int] = []
        self.ranks = content.ranks
        self._content = content
        self._sequence = list(sequence)
        self._num_tokens = num_tokens
        self._num_assumed = len(sequence) + guesses_bonus
        self._sampler = sampler
        self._on_draft = on_draft
        self._min_confidence = min_confidence
        self._confidence = 1.0
        self.spec = sampler.spec if num_tokens else None

    @property
    def num_at_once(self) -> int:
        """How many tokens to choose in a row; with `on_draft` one, since it may end drafting."""
        if self._on_draft is not None:
            return 1
        most = _FEW_STEPS if self._min_confidence else MANY_STEPS
        return min(most, self._num_tokens - len(self.draft_token_ids))

    def advance(self, logits: Tensor) -> list[int]:
        if self._num_tokens == 0:
            return []
        return self._draft(self._sampler.rank(logits, len(self._sequence)))

    def take(self, choices: Sequence[Choice]) -> list[int]:
        return self._draft(self._sampler.revise(list(choices), len(self._sequence)))

    def _draft(self, choices: list[Choice]) -> list[int]:
        """Adds a token to the draft; returns it to be read, or nothing if it is the last one."""
        more = self._add(choices)
        continues = self._on_draft is None or self._on_draft(self)
        return more if continues else []

    def _add(self, choices: list[Choice]) -> list[int]:
        """`_draft` without `on_draft`."""
        token_id = choices[0].token_id
        self.ranks[len(self._sequence)] = choices
        self._sequence.append(token_id)
        self.draft_token_ids.append(token_id)
        self._confidence *= choices[0].prob
        is_last = (
            len(self.draft_token_ids) == self._num_tokens
            or token_id in self._sampler.eos_token_ids
            or self._confidence < self._min_confidence
        )
        return [] if is_last else [token_id]

    @property
    def step_ns(self) -> int:
        """The time of its first step, or of its steps on average."""
        return self.timings.forward_ns

    def predrafted(self, context_length: int) -> Predraft:
        """The predraft: the drafted tokens, and the tokens after the context that it assumes."""
        draft = tuple(self._sequence[self._num_assumed :])
        assumed = tuple(self._sequence[context_length : self._num_assumed])
        return Predraft(context_length, assumed, draft, self.timings.forward_ns)

    def settle(self) -> None:
        """Updates the slot's content with the tokens that have been read or copied."""
        uncopied = self.copy_from  # before `start`, since the engine's thread clears it after
        num_read = self.start if uncopied is None else uncopied[1]
        self._content.token_ids = self._sequence[: self._content.first_index + num_read]
