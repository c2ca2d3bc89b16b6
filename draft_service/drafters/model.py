"""Proposes by a small model: k steps, batched with those of other sessions.

While the target verifies, the model drafts on: past the last draft token, as if all
were accepted, and after the likeliest corrections, each in a slot of its own
("Speculative Speculative Decoding", arXiv 2603.03251). Whatever the verdict is, the
next proposal starts from the slot that has most of it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence

from torch import Tensor

from draft_service.drafters import OnPrepared
from draft_service.drafters.breadth import Breadth, StepTime
from draft_service.drafters.drafting import Drafting, Sampler, SlotContent
from draft_service.drafters.outcomes import acceptance_chance, likeliest_corrections
from outrider.engine.activity import ModelActivity, activity_of
from outrider.engine.model import Engine
from outrider.engine.scheduler import Scheduler
from outrider.engine.sequence import TokenSequence
from outrider.messages import GREEDY, Preparation, Prepared, Proposal, SamplingParams


class ModelDrafterSession:
    """A sequence in one of a session's slots; the others are for preparations."""

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        max_branches: int,
        min_confidence: float = 0.0,
        step_time: StepTime = StepTime(),  # noqa: B008
    ) -> None:
        self._min_confidence = min_confidence
        self._scheduler = scheduler
        self._max_branches = max_branches
        self._max_length = engine.max_context_length
        self._sequence = TokenSequence(engine.vocab_size, engine.max_context_length)
        self._logit_token_ids = engine.logit_token_ids
        self._sampler = Sampler(GREEDY, engine.logit_token_ids, engine.eos_token_ids)
        self._contents = [SlotContent(slot) for slot in scheduler.acquire_all(max(1, max_branches))]
        self._main = self._contents[0]
        self._last_draft_token: list[int] = []  # which the sequence does not have yet
        self._preparations: list[Drafting] = []
        self._preparing_since_ns: int | None = None
        self._breadth = Breadth(step_time)

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
        self._drop_preparations()
        tokens = self._sequence.token_ids
        length = len(tokens)
        self._sampler = dataclasses.replace(
            self._sampler, params=params, token_ids=self._shared_token_ids(vocab_size)
        )
        self._main = max(self._contents, key=lambda content: content.common_length(tokens))
        self._last_draft_token = []
        # Somebody waits for these tokens, so they must be worth it; those prepared are free.
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

    def _shared_token_ids(self, vocab_size: int | None) -> Tensor:
        """The ids that the draft can propose and the target knows; they are ascending."""
        if vocab_size is None:
            return self._logit_token_ids
        return self._logit_token_ids[self._logit_token_ids < vocab_size]

    def prepare(
        self, num_draft_tokens: int, preparation: Preparation, on_prepared: OnPrepared
    ) -> None:
        tokens = self._sequence.token_ids + self._last_draft_token
        num_committed = len(tokens) - num_draft_tokens
        committed, draft = tokens[:num_committed], tokens[num_committed:]
        num_tokens = min(preparation.num_tokens, self._max_length - len(tokens) - 1)
        num_branches = min(preparation.num_branches, self._max_branches)
        if num_branches < 1 or num_tokens < 1:
            return
        self._preparing_since_ns = time.perf_counter_ns()
        ranks = [self._main.ranks.get(num_committed + i, []) for i in range(len(draft))]
        corrections = likeliest_corrections(draft, ranks, num_branches - 1)
        if preparation.is_limit:
            chances = [acceptance_chance(draft, ranks), *(chance for chance, _ in corrections)]
            num_branches = self._breadth.choose(chances, num_tokens)
        announce = Announcer(num_committed, on_prepared)
        if num_branches and tokens[-1] not in self._sampler.eos_token_ids:
            # As if all were accepted. The first token is a guess of the bonus token.
            self._draft_on(self._main, tokens, 1 + num_tokens, announce, guesses_bonus=True)
        spare = (content for content in self._contents if content is not self._main)
        likely = corrections[: max(0, num_branches - 1)]
        for content, (_, correction) in zip(spare, likely, strict=False):
            if correction[-1] not in self._sampler.eos_token_ids:
                self._draft_on(content, [*committed, *correction], num_tokens, announce)

    def _draft_on(
        self,
        content: SlotContent,
        sequence: list[int],
        num_tokens: int,
        announce: Announcer,
        guesses_bonus: bool = False,
    ) -> None:
        """Drafts after `sequence` in the background."""
        job = Drafting(
            content,
            sequence,
            num_tokens,
            self._sampler,
            source=self._main,
            is_background=True,
            on_draft=announce,
            guesses_bonus=guesses_bonus,
        )
        self._preparations.append(job)
        self._scheduler.submit(job)

    def _drop_preparations(self) -> None:
        jobs = self._preparations
        if self._preparing_since_ns is not None:
            elapsed_ns = time.perf_counter_ns() - self._preparing_since_ns
            num_passes = max((job.num_passes for job in jobs), default=0)
            is_done = all(job.done.done() for job in jobs)
            self._breadth.observe(elapsed_ns, len(jobs), num_passes, is_done)
            self._preparing_since_ns = None
        for job in self._preparations:
            self._scheduler.drop(job)
            job.settle()
        self._preparations.clear()

    def close(self) -> None:
        self._drop_preparations()
        for content in self._contents:
            self._scheduler.release(content.slot)


class Announcer:
    """Brings drafted tokens from the engine's thread to `on_prepared`, several at a time."""

    def __init__(self, context_length: int, on_prepared: OnPrepared) -> None:
        self._context_length = context_length
        self._on_prepared = on_prepared
        self._loop = asyncio.get_running_loop()
        self._grown: dict[Drafting, Prepared] = {}

    def __call__(self, job: Drafting) -> None:
        """Called on the engine's thread when `job` has drafted a token."""
        prepared = job.prepared(self._context_length)
        if prepared.draft_token_ids:
            self._loop.call_soon_threadsafe(self._add, job, prepared)

    def _add(self, job: Drafting, prepared: Prepared) -> None:
        if not self._grown:
            self._loop.call_soon(self._flush)
        self._grown[job] = prepared

    def _flush(self) -> None:
        grown = [prepared for job, prepared in self._grown.items() if not job.is_dropped]
        self._grown.clear()
        if grown:
            self._on_prepared(grown)


class ModelDrafter:
    """Opens sessions on one engine.

    Args:
        num_branches: how many outcomes a session can prepare for at most. A session
            takes a slot of the engine's cache for each.
        step_time: what a draft step takes, see `measure_step_time`.
        min_confidence: a proposal ends where the draft thinks that the target is less
            likely than this to accept all of it.
    """

    def __init__(
        self,
        engine: Engine,
        num_branches: int,
        min_confidence: float = 0.0,
        step_time: StepTime = StepTime(),  # noqa: B008
    ) -> None:
        self.engine = engine
        self._step_time = step_time
        self._num_branches = num_branches
        self._min_confidence = min_confidence
        self.scheduler = Scheduler(engine, engine.cache.num_slots, engine.pace)

    @property
    def num_free_slots(self) -> int:
        return self.scheduler.num_free_slots // max(1, self._num_branches)

    def activity(self) -> ModelActivity:
        return activity_of(self.engine, self.scheduler, max(1, self._num_branches))

    def open_session(self) -> ModelDrafterSession:
        """Raises NoFreeSlot."""
        return ModelDrafterSession(
            self.engine,
            self.scheduler,
            self._num_branches,
            self._min_confidence,
            self._step_time,
        )

    def close(self) -> None:
        self.scheduler.close()
