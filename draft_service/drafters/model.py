"""A drafter with a small model, whose passes all sessions share.

While the target verifies, the model predrafts: after the last draft token, as if all were
accepted, and after the likeliest corrections, each in a separate slot ("Speculative
Speculative Decoding", arXiv 2603.03251). Whatever the result is, the next proposal starts
from the slot that holds most of the committed tokens.
"""

import asyncio
import dataclasses
import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from draft_service.drafters.drafting import Drafting, Sampler, SlotContent
from draft_service.drafters.fan_out import (
    EVERY_OUTCOME,
    UNKNOWN_STEP_TIME,
    Depth,
    FanOut,
    StepTime,
)
from draft_service.drafters.predrafts import Announcer, OnPredrafts, Predrafts
from outrider.engine.engine import Engine
from outrider.engine.scheduling.sequence import TokenSequence
from outrider.engine.worker import Worker
from outrider.protocol.hidden_states import HiddenStates
from outrider.protocol.messages import GREEDY, PredraftPlan, Proposal, SamplingParams

# The most tokens that are read by the pass that drafts after them.
_FEW_TOKENS = 16


class ModelDrafterSession:
    """One client's sequence, in one of the session's slots; the other slots are for predrafts.

    `close` frees the slots.
    """

    def __init__(self, drafter: "ModelDrafter", max_length: int) -> None:
        engine = drafter.engine
        self._drafter = drafter
        self._max_length = max_length
        self._sequence = TokenSequence(engine.vocab_size, max_length)
        self._sampler = Sampler(GREEDY, engine.logit_token_ids, engine.eos_token_ids)
        self._asked: tuple[SamplingParams, int | None] | None = None
        slots = drafter.scheduler.acquire_all(drafter.slots_per_session, max_length)
        self._contents: Sequence[SlotContent] = [self._content(slot, slots[0]) for slot in slots]
        self._main = self._contents[0]
        self._last_draft_token: list[int] = []  # not in the sequence yet
        self._predrafts: Predrafts | None = None
        self._fan_out = FanOut(drafter.step_time)
        self._is_behind_prompt = False  # whether the target reads the prompt, which takes long

    async def propose(
        self,
        context_length: int,
        token_ids: Sequence[int],
        num_speculative_tokens: int,
        params: SamplingParams,
        vocab_size: int | None,
        hidden_states: HiddenStates | None = None,
    ) -> Proposal:
        """Keeps `context_length` tokens, appends `token_ids`, and proposes tokens after these.

        Args:
            num_speculative_tokens: the most tokens to propose; 0 only updates the sequence.
            vocab_size: if given, only ids below it are proposed.
            hidden_states: the target's, for a feature draft.

        Raises:
            ContextMismatch, InvalidToken, ContextTooLong, InvalidRequest: the session is unchanged.
        """
        room = max(0, num_speculative_tokens - 1)  # the last draft token is not read
        self._sequence.update(context_length, token_ids, room)
        self._drop_predrafts()
        self._take(context_length, hidden_states)
        tokens = self._sequence.token_ids
        length = len(tokens)
        if (params, vocab_size) != self._asked:  # of the first request, normally
            self._asked = params, vocab_size
            self._sampler = dataclasses.replace(
                self._sampler, params=params, token_ids=self._drafter.proposable(vocab_size)
            )
        self._main = max(self._contents, key=lambda content: content.num_held(tokens))
        self._last_draft_token = []
        if not self._is_readable:
            return Proposal(length, (), length)
        num_read = self._main.num_held(tokens)
        self._is_behind_prompt = is_prompt = num_read == self._main.first_index
        if num_speculative_tokens == 0 and not is_prompt and length - num_read <= _FEW_TOKENS:
            return Proposal(length, (), length)  # a separate pass would only delay the others
        # These tokens are waited for, so they must be worth it; predrafts are free.
        job = self._drafting(
            self._main,
            tokens,
            num_speculative_tokens,
            min_confidence=self._drafter.min_confidence,
        )
        timings = await asyncio.wrap_future(self._drafter.scheduler.submit(job))
        job.settle()
        tokens.extend(job.draft_token_ids[:-1])
        self._last_draft_token = job.draft_token_ids[-1:]
        return Proposal(length, tuple(job.draft_token_ids), len(tokens), timings)

    def predraft(
        self, num_draft_tokens: int, predraft_plan: PredraftPlan, on_predrafts: OnPredrafts
    ) -> None:
        """Predrafts in the background, until the next `propose`.

        Args:
            num_draft_tokens: how many tokens at the end of the sequence, including the proposal,
                are being verified.
        """
        drafter = self._drafter
        tokens = self._sequence.token_ids + self._last_draft_token
        num_committed = len(tokens) - num_draft_tokens
        num_tokens = min(predraft_plan.num_tokens, self._max_length - len(tokens) - 1)
        num_predrafts = min(predraft_plan.num_predrafts, drafter.num_predrafts)
        if num_predrafts < 1 or num_tokens < 1 or not self._is_readable:
            return
        spare = [content for content in self._contents if content is not self._main]
        self._predrafts = Predrafts(
            tokens[:num_committed],
            tokens[num_committed:],
            drafter.scheduler,
            self._main,
            spare[: num_predrafts - 1],
            self._drafting,
            self._sampler.eos_token_ids,
            Depth(num_tokens, predraft_plan.acceptance_rate),
            Announcer(num_committed, on_predrafts),
            self._fan_out if predraft_plan.is_limit else EVERY_OUTCOME,
        )

    def _content(self, slot: int, session: int) -> SlotContent:
        return SlotContent(slot, session)

    def _drafting(
        self, content: SlotContent, sequence: Sequence[int], num_tokens: int, **options: Any
    ) -> Drafting:
        return Drafting(content, sequence, num_tokens, self._sampler, **options)

    def _take(self, context_length: int, hidden_states: HiddenStates | None) -> None:
        """Takes what a feature draft reads beside the sequence. Raises InvalidRequest."""

    @property
    def _is_readable(self) -> bool:
        """Whether there is anything in the sequence that the draft can read."""
        return True

    def _drop_predrafts(self) -> None:
        if self._predrafts is not None:
            window = self._predrafts.drop()
            if not self._is_behind_prompt:
                self._fan_out.observe(*window)
            self._predrafts = None

    def close(self) -> None:
        self._drop_predrafts()
        contents, self._contents = self._contents, []
        for content in contents:
            self._drafter.scheduler.release(content.slot, is_copy=content is not self._main)


class ModelDrafter(Worker):
    """Opens sessions on one engine.

    Args:
        num_predrafts: the most outcomes that a session can predraft for. Each takes a slot of the
            engine's cache.
        step_time: the time of a draft step, see `measure_step_time`.
        min_confidence: a proposal ends when the probability that the target accepts all of it,
            by the draft's own probabilities, falls below this.
    """

    def __init__(
        self,
        engine: Engine,
        num_predrafts: int,
        min_confidence: float = 0.0,
        step_time: StepTime = UNKNOWN_STEP_TIME,
    ) -> None:
        super().__init__(engine, max(1, num_predrafts))
        self.num_predrafts = num_predrafts
        self.min_confidence = min_confidence
        self.step_time = step_time
        # Once: to look at a tensor on a device waits for all its passes.
        self._proposable: list[int] = engine.logit_token_ids.tolist()

    def proposable(self, vocab_size: int | None) -> Tensor:
        """The tokens that may be proposed: those below `vocab_size`; None: all.

        They are the tokens of the logits' first columns.
        """
        count = bisect_left(self._proposable, vocab_size or math.inf)
        return self.engine.logit_token_ids[:count]

    def open_session(self, max_length: int = 0) -> ModelDrafterSession:
        """Opens a session for up to `max_length` tokens; 0: the most. Raises NoFreeSlot."""
        return ModelDrafterSession(self, self.longest(max_length))
