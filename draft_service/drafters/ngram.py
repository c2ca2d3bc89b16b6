"""Proposes by prompt lookup, without a model."""

from __future__ import annotations

import time
from collections.abc import Sequence

from draft_service.drafters import OnPredrafts
from outrider.engine.activity import ModelActivity
from outrider.engine.scheduling.sequence import TokenSequence
from outrider.engine.scheduling.slots import RETRY_SECONDS
from outrider.errors import NoFreeSlot
from outrider.protocol.messages import PredraftPlan, Proposal, SamplingParams, Timings
from outrider.sampling.prompt_lookup import longest_match

MAX_NGRAM = 4
MIN_NGRAM = 2


def look_up(token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """Up to `num_tokens` tokens that followed the latest earlier place of the text's end."""
    match = longest_match(token_ids, MIN_NGRAM, MAX_NGRAM)
    return [] if match is None else list(token_ids[match.end : match.end + num_tokens])


class NgramSession:
    """One client's tokens. Counts as a slot, though it holds no cache."""

    def __init__(self, drafter: NgramDrafter) -> None:
        self._drafter = drafter
        self._is_open = True
        self._sequence = TokenSequence(None, drafter.max_context_length)

    async def propose(
        self,
        context_length: int,
        token_ids: Sequence[int],
        num_speculative_tokens: int,
        params: SamplingParams,
        vocab_size: int | None,
    ) -> Proposal:
        began = time.perf_counter_ns()
        self._sequence.update(context_length, token_ids, room=0)
        tokens = self._sequence.token_ids
        draft = look_up(tokens, num_speculative_tokens) if num_speculative_tokens else []
        timings = Timings(sample_ns=time.perf_counter_ns() - began)
        return Proposal(len(tokens), tuple(draft), len(tokens), timings)

    def predraft(
        self, num_draft_tokens: int, predraft_plan: PredraftPlan, on_predrafts: OnPredrafts
    ) -> None:
        """Nothing: looking up takes less time than sending what might be needed."""

    def close(self) -> None:
        self._drafter.num_free_slots += self._is_open
        self._is_open = False


class NgramDrafter:
    """Opens sessions of prompt lookup, at most `num_slots` at a time."""

    def __init__(self, num_slots: int, max_context_length: int) -> None:
        self.num_slots = self.num_free_slots = num_slots
        self.max_context_length = max_context_length

    def activity(self) -> ModelActivity:
        return ModelActivity(self.num_slots, self.num_free_slots)

    def check(self) -> None:
        """Nothing can fail."""

    def open_session(self) -> NgramSession:
        """Raises NoFreeSlot."""
        if self.num_free_slots == 0:
            raise NoFreeSlot("all sessions of this service are taken", retry_after=RETRY_SECONDS)
        self.num_free_slots -= 1
        return NgramSession(self)

    def close(self) -> None:
        """Nothing to end."""
