"""A drafter with a feature draft, which reads the target's hidden states as well as the tokens.

Each token is read together with the hidden states of the previous token: the target's if they are
known, otherwise the draft's own. When the target's arrive, tokens that were read with the draft's
own states are read again: a slot counts as holding only tokens that need not be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from draft_service.drafters.drafting import MANY_STEPS, Drafting, Sampler, SlotContent
from draft_service.drafters.model import ModelDrafter, ModelDrafterSession
from draft_service.drafters.target_states import TargetStates
from outrider.engine.chunk import Chunk, Features
from outrider.engine.eagle3.engine import Eagle3Engine
from outrider.engine.scheduling.sequence import common_length
from outrider.errors import InvalidRequest
from outrider.protocol.hidden_states import HiddenStates
from outrider.sampling.sampler import Choice

# How many of the last tokens may be without the target's hidden states: those being verified.
_MOST_LACKING = 64
# Tokens of a predraft in a pass: a proposal that comes meanwhile waits for them, and each pass and
# message costs about as much as a step.
_STEPS_IN_BACKGROUND = 2
# Rows of the target that are kept after they were read, since the last tokens may change.
_NUM_KEPT = 64


@dataclass
class FeatureContent(SlotContent):
    """`outputs[i]` are the draft's own hidden states [1, hidden_size] after token i.

    The first `num_true` tokens of the sequence need not be read again: the draft does not read
    them at all, or has read them with the target's hidden states.
    """

    states: TargetStates = field(kw_only=True)
    num_true: int = 0
    outputs: dict[int, Tensor] = field(default_factory=dict)

    @property
    def first_index(self) -> int:  # type: ignore[override]
        return self.states.origin + 1

    def num_held(self, token_ids: Sequence[int]) -> int:
        num_common = common_length(self.token_ids, token_ids)
        # Tokens that came with other states than they can have now are read again.
        if min(num_common, self.states.end + 1) > self.num_true:
            num_common = self.num_true
        return max(self.first_index, num_common)

    def keep(self, length: int) -> None:
        super().keep(length)
        self.num_true = min(self.num_true, length)
        outputs = list(self.outputs.items())  # a copy, as that of `ranks`
        recent = range(max(0, self.num_true - 1), length)
        self.outputs = {index: rows for index, rows in outputs if index in recent}

    def clear(self) -> None:
        self.token_ids, self.ranks, self.outputs, self.num_true = [], {}, {}, 0


class FeatureDrafting(Drafting):
    """Drafts like its base class, and reads hidden states.

    First it reads, as one chunk, the tokens with states of the target. The rest of the sequence,
    if any, it reads token by token with its own states, like tokens that it drafts.
    """

    def __init__(
        self,
        content: FeatureContent,
        sequence: Sequence[int],
        num_tokens: int,
        sampler: Sampler,
        source: FeatureContent | None = None,
        **options: Any,
    ) -> None:
        super().__init__(content, sequence, num_tokens, sampler, source, **options)
        states = content.states
        self._first_index = content.first_index
        start = self._first_index + self.start
        if source is not None and self.copy_from is not None:
            content.outputs |= {i: rows for i, rows in list(source.outputs.items()) if i < start}
        self._outputs = content.outputs
        self._num_true = states.end + 1
        if start > states.end and start - 1 not in self._outputs:
            start = states.end  # the last token with states of the target
            self.start = start - self._first_index
            self.copy_from = None
        self.token_ids = self._sequence[start : max(self._num_true, start + 1)]
        self._rows_begin = start - 1
        self._rows = states.rows(self._rows_begin, states.end)
        self._features: Features
        self._last_read: int  # the index of the last token in the current pass
        self._followed: list[int] = []  # tokens to read after the chunk, in order
        self._num_told = 0  # draft tokens that `on_draft` knows of
        self._num_steps = 0
        self._failure: Exception | None = None

    def num_skippable(self, num_known: int) -> int:
        """0: a slot may have read the same tokens with other hidden states."""
        return 0

    @property
    def num_at_once(self) -> int:
        num_unread = len(self._sequence) - self._first_index - self.start - len(self.token_ids)
        if self._on_draft is None:
            most = MANY_STEPS  # it may end early: `_follow` says so
        else:  # other predrafts begin when the bonus token has been guessed
            most = 1 if len(self._sequence) < self._num_assumed else _STEPS_IN_BACKGROUND
        return num_unread + min(most, self._num_tokens - len(self.draft_token_ids))

    def next_chunk(self, budget: int) -> Chunk:
        chunk = super().next_chunk(budget)
        before = self._first_index + chunk.start - 1
        self._last_read = before + len(chunk.token_ids)
        are_own = self._last_read >= self._num_true
        if are_own:
            rows = self._outputs[before]
        else:
            begin = before - self._rows_begin
            rows = self._rows[begin : begin + len(chunk.token_ids)]
        self._features = Features(rows, are_own, self._first_index, self._follow)
        return replace(chunk, features=self._features)

    def advance(self, logits: Tensor) -> list[int]:
        if self._num_tokens == 0:
            return []
        self._next(self._sampler.rank(logits, self._last_read + 1))
        return self._go_on(0)

    def advance_by(self, chosen: Sequence[Sequence[Choice]]) -> list[int]:
        if self._failure is not None:
            raise self._failure
        return self._go_on(len(chosen) - 1)

    def _go_on(self, num_read: int) -> list[int]:
        """Notes that so many tokens were read after the chunk; returns what is to be read next."""
        self.read += self._followed[:num_read]
        self.start += num_read
        unread, self._followed = self._followed[num_read:], []
        if self._on_draft is not None and len(self.draft_token_ids) > self._num_told:
            self._num_told = len(self.draft_token_ids)
            if not self._on_draft(self):
                return []
        return unread

    def _follow(self, choices: list[Choice]) -> int | None:
        """`Features.follow`: called within a pass, which other sessions share."""
        try:
            return self._next(self._sampler.revise(choices, self._last_read + 1))
        except Exception as error:
            self._failure = error
            return None

    def _next(self, choices: list[Choice]) -> int | None:
        """Notes the choices after the last token that was read; returns the next one to read."""
        self._num_steps += 1
        self._outputs[self._last_read] = self._features.outputs[-1]
        index = self._last_read + 1
        if index < len(self._sequence):
            self.ranks[index] = choices
            token_id = self._sequence[index]
        else:
            more = self._add(choices)
            if not more:
                return None
            [token_id] = more
        self._last_read = index
        self._followed.append(token_id)
        return token_id

    @property
    def step_ns(self) -> int:
        return self.timings.forward_ns // max(1, self._num_steps)

    def settle(self) -> None:
        super().settle()
        content = self._content
        assert isinstance(content, FeatureContent)
        content.num_true = min(len(content.token_ids), self._num_true)


class Eagle3Session(ModelDrafterSession):
    """A session of a feature draft."""

    def __init__(self, drafter: ModelDrafter, max_length: int) -> None:
        assert isinstance(drafter.engine, Eagle3Engine)
        self._states = TargetStates(drafter.engine.feature_width)
        super().__init__(drafter, max_length)

    def _content(self, slot: int, session: int) -> FeatureContent:
        return FeatureContent(slot, session, states=self._states)

    def _drafting(
        self, content: SlotContent, sequence: Sequence[int], num_tokens: int, **options: Any
    ) -> FeatureDrafting:
        assert isinstance(content, FeatureContent)
        return FeatureDrafting(content, sequence, num_tokens, self._sampler, **options)

    def _take(self, context_length: int, hidden_states: HiddenStates | None) -> None:
        states, main = self._states, self._main
        assert isinstance(main, FeatureContent)
        states.drop_before(main.num_true - _NUM_KEPT)
        if states.take(context_length, hidden_states):
            for content in self._contents:
                assert isinstance(content, FeatureContent)
                content.clear()
        if len(self._sequence.token_ids) - 1 - states.end > _MOST_LACKING:
            raise InvalidRequest("hidden states of the target are missing")

    @property
    def _is_readable(self) -> bool:
        return self._states.end > self._states.origin


class Eagle3Drafter(ModelDrafter):
    """Opens sessions on the engine of a feature draft."""

    def open_session(self, max_length: int = 0) -> Eagle3Session:
        """See `ModelDrafter.open_session`."""
        return Eagle3Session(self, self.longest(max_length))
