"""A drafter with a small model: k steps, batched with those of other sessions.

While the target verifies, the model predrafts: past the last draft token, as if all were
accepted, and after the likeliest corrections, each in a separate slot ("Speculative
Speculative Decoding", arXiv 2603.03251). Whatever the result is, the next proposal starts
from the slot that has most of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from bisect import bisect_left
from collections.abc import Sequence

from torch import Tensor

from draft_service.drafters import OnPredrafts
from draft_service.drafters.drafting import Drafting, Sampler, SlotContent
from draft_service.drafters.fan_out import (
    EVERY_OUTCOME,
    UNKNOWN_STEP_TIME,
    Depth,
    FanOut,
    StepTime,
)
from draft_service.drafters.predrafts import Announcer, Predrafts
from outrider.engine.activity import ModelActivity, activity_of
from outrider.engine.engine import Engine
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.engine.scheduling.sequence import TokenSequence
from outrider.protocol.messages import GREEDY, PredraftPlan, Proposal, SamplingParams

# The most tokens that are read by the pass that drafts after them.
_FEW_TOKENS = 16


class Proposable:
    """The tokens that a draft can propose, ascending; they have the logits' first columns."""

    def __init__(self, token_ids: Tensor) -> None:
        self._token_ids = token_ids
        self._values = token_ids.tolist()  # once, since reading a device waits for its passes

    def below(self, vocab_size: int | None) -> Tensor:
        """The tokens below `vocab_size`; None: all."""
        return self._token_ids[: bisect_left(self._values, vocab_size or math.inf)]


class ModelDrafterSession:
    """A sequence in one of a session's slots; the others are for predrafts."""

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        proposable: Proposable,
        max_predrafts: int,
        min_confidence: float = 0.0,
        step_time: StepTime = UNKNOWN_STEP_TIME,
    ) -> None:
        self._min_confidence = min_confidence
        self._scheduler = scheduler
        self._max_predrafts = max_predrafts
        self._max_length = engine.max_context_length
        self._sequence = TokenSequence(engine.vocab_size, engine.max_context_length)
        self._proposable = proposable
        self._sampler = Sampler(GREEDY, engine.logit_token_ids, engine.eos_token_ids)
        slots = scheduler.acquire_all(max(1, max_predrafts))
        self._contents = [SlotContent(slot, session=slots[0]) for slot in slots]
        self._main = self._contents[0]
        self._last_draft_token: list[int] = []  # not in the sequence yet
        self._branches: Predrafts | None = None
        self._fan_out = FanOut(step_time)
        self._is_behind_prompt = False  # whether the target reads the prompt, which takes long

    async def propose(
        self,
        context_length: int,
        token_ids: Sequence[int],
        num_speculative_tokens: int,
        params: SamplingParams,
        vocab_size: int | None,
    ) -> Proposal:
        room = max(0, num_speculative_tokens - 1)  # the last draft token is not read
        self._sequence.update(context_length, token_ids, room)
        self._drop_branches()
        tokens = self._sequence.token_ids
        length = len(tokens)
        self._sampler = dataclasses.replace(
            self._sampler, params=params, token_ids=self._proposable.below(vocab_size)
        )
        self._main = max(self._contents, key=lambda content: content.common_length(tokens))
        self._last_draft_token = []
        num_read = self._main.common_length(tokens)
        self._is_behind_prompt = is_prompt = num_read == 0
        if num_speculative_tokens == 0 and not is_prompt and length - num_read <= _FEW_TOKENS:
            return Proposal(length, (), length)  # a separate pass would only delay the others
        # These tokens are waited for, so they must be worth it; predrafts are free.
        job = Drafting(
            self._main,
            tokens,
            num_speculative_tokens,
            self._sampler,
            min_confidence=self._min_confidence,
        )
        timings = await asyncio.wrap_future(self._scheduler.submit(job))
        job.settle()
        tokens.extend(job.draft_token_ids[:-1])
        self._last_draft_token = job.draft_token_ids[-1:]
        return Proposal(length, tuple(job.draft_token_ids), len(tokens), timings)

    def predraft(
        self, num_draft_tokens: int, predraft_plan: PredraftPlan, on_predrafts: OnPredrafts
    ) -> None:
        tokens = self._sequence.token_ids + self._last_draft_token
        num_committed = len(tokens) - num_draft_tokens
        num_tokens = min(predraft_plan.num_tokens, self._max_length - len(tokens) - 1)
        num_predrafts = min(predraft_plan.num_predrafts, self._max_predrafts)
        if num_predrafts < 1 or num_tokens < 1:
            return
        spare = [content for content in self._contents if content is not self._main]
        self._branches = Predrafts(
            self._scheduler,
            self._main,
            spare[: num_predrafts - 1],
            self._sampler,
            Depth(num_tokens, predraft_plan.acceptance_rate),
            Announcer(num_committed, on_predrafts),
            self._fan_out if predraft_plan.is_limit else EVERY_OUTCOME,
        )
        self._branches.start(tokens[:num_committed], tokens[num_committed:])

    def _drop_branches(self) -> None:
        if self._branches is not None:
            window = self._branches.drop()
            if not self._is_behind_prompt:
                self._fan_out.observe(*window)
            self._branches = None

    def close(self) -> None:
        self._drop_branches()
        contents, self._contents = self._contents, []
        for content in contents:
            self._scheduler.release(content.slot)


class ModelDrafter:
    """Opens sessions on one engine.

    Args:
        num_predrafts: the most outcomes that a session can predraft for. A session
            takes a slot of the engine's cache for each.
        step_time: of a draft step, see `measure_step_time`.
        min_confidence: a proposal ends when the target is less likely than this to accept
            all of it, by the draft's own probabilities.
    """

    session_class = ModelDrafterSession

    def __init__(
        self,
        engine: Engine,
        num_predrafts: int,
        min_confidence: float = 0.0,
        step_time: StepTime = UNKNOWN_STEP_TIME,
    ) -> None:
        self.engine = engine
        self._step_time = step_time
        self._num_predrafts = num_predrafts
        self._min_confidence = min_confidence
        self._proposable = Proposable(engine.logit_token_ids)
        self.scheduler = Scheduler(
            engine, engine.cache.num_slots, engine.batch_limits, engine.threads
        )

    @property
    def num_free_slots(self) -> int:
        return self.scheduler.num_free_slots // max(1, self._num_predrafts)

    def activity(self) -> ModelActivity:
        return activity_of(self.engine, self.scheduler, max(1, self._num_predrafts))

    def check(self) -> None:
        self.scheduler.check()

    def open_session(self) -> ModelDrafterSession:
        """Raises NoFreeSlot."""
        return self.session_class(
            self.engine,
            self.scheduler,
            self._proposable,
            self._num_predrafts,
            self._min_confidence,
            self._step_time,
        )

    def close(self) -> None:
        self.scheduler.close()
