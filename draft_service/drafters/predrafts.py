"""Predrafts: drafting while the target verifies, for several outcomes, each in its own slot."""

import asyncio
import heapq
import time
from collections.abc import Callable, Sequence

from draft_service.drafters.drafting import Drafting, SlotContent
from draft_service.drafters.fan_out import Depth, FanOut
from draft_service.drafters.outcomes import (
    Correction,
    acceptance_chance,
    likeliest_corrections,
)
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.protocol.messages import Predraft

OnPredrafts = Callable[[list[Predraft]], None]
"""Called on the event loop with predrafts that are new or have grown."""


class Predrafts:
    """The predrafts of one verification.

    For full acceptance, the first token after the draft is a guess of the bonus token. The other
    outcomes are corrections and, once that guess is known, its runners-up as other bonus tokens.

    Args:
        committed, draft: the draft tokens that are being verified, and the tokens before them.
        main: the content of the slot that has read the sequence, and predrafts full acceptance.
        spare: the contents of the other slots, one for each further outcome.
        make: creates jobs; takes the arguments of `Drafting` except for the sampler.
        eos_token_ids: the tokens that end a text.
        depth: how many tokens to draft for each outcome.
        announce: called when a predraft has been started or has grown.
        fan_out: chooses how many outcomes are worthwhile.
    """

    def __init__(
        self,
        committed: list[int],
        draft: list[int],
        scheduler: Scheduler,
        main: SlotContent,
        spare: Sequence[SlotContent],
        make: Callable[..., Drafting],
        eos_token_ids: Sequence[int],
        depth: Depth,
        announce: "Announcer",
        fan_out: FanOut,
    ) -> None:
        self._scheduler = scheduler
        self._main = main
        self._spare = list(spare)
        self._make = make
        self._eos_token_ids = eos_token_ids
        self._depth = depth
        self._announce = announce
        self._fan_out = fan_out
        self._committed = committed
        self._draft = draft
        self._jobs: list[Drafting] = []
        self._began_ns = time.perf_counter_ns()
        ranks = [self._main.ranks.get(len(committed) + i, []) for i in range(len(draft))]
        # The chance that all of the draft is accepted.
        self._accepted = acceptance_chance(draft, ranks)
        corrections = likeliest_corrections(draft, ranks, len(self._spare))
        chances = [chance for chance, _ in corrections]
        plan = self._fan_out.plan(len(draft), self._accepted, chances, self._depth)
        # Not drafted after yet.
        self._corrections = corrections[plan.num_corrections :]
        sequence = [*committed, *draft]
        if plan.accepted and sequence[-1] not in self._eos_token_ids:
            guess = self._make(
                self._main,
                sequence,
                1 + self._depth.num_tokens,
                is_background=True,
                on_draft=self._on_guess,
                guesses_bonus=True,
            )
            self._jobs.append(guess)
        self._jobs += self._after(corrections[: plan.num_corrections])
        # As soon as the first one is submitted, others may follow at any moment.
        for job in list(self._jobs):
            self._scheduler.submit(job)

    def _after(self, outcomes: Sequence[Correction]) -> list[Drafting]:
        """Jobs that draft after these, in spare slots."""
        jobs = []
        for _, token_ids in outcomes:
            if not self._spare:
                break
            if token_ids[-1] in self._eos_token_ids:
                continue
            jobs.append(
                self._make(
                    self._spare.pop(0),
                    [*self._committed, *token_ids],
                    self._depth.num_tokens,
                    source=self._main,
                    is_background=True,
                    on_draft=self._on_draft,
                )
            )
        for job in jobs:
            self._announce(job)  # still empty
        return jobs

    def _on_guess(self, job: Drafting) -> bool:
        """Adds further outcomes. Called on the engine's thread, for its next pass."""
        if len(job.draft_token_ids) > 1:
            return self._on_draft(job)
        self._announce(job)
        self._scheduler.follow_up(job, lambda: self._further(job))
        return True

    def _on_draft(self, job: Drafting) -> bool:
        """Returns whether a further token would be there in time."""
        self._announce(job)
        num_running = sum(not job.done.done() for job in self._jobs)
        return self._fan_out.has_time(num_running, time.perf_counter_ns() - self._began_ns)

    def _further(self, guess_job: Drafting) -> list[Drafting]:
        """Jobs for other outcomes that are worth it now that the bonus token is guessed."""
        self._fan_out.note_pass(len(self._jobs), guess_job.step_ns)
        guess_job.settle()  # so that its tokens can be copied
        guess, *runners_up = guess_job.ranks[len(self._committed) + len(self._draft)]
        others = self._corrections + [
            Correction(self._accepted * other.prob, [*self._draft, other.token_id])
            for other in runners_up
        ]
        likeliest = heapq.nlargest(len(self._spare), others, key=lambda other: other.chance)
        chances = [chance for chance, _ in likeliest]
        spent_ns = time.perf_counter_ns() - self._began_ns
        count = self._fan_out.further(self._accepted * guess.prob, chances, self._depth, spent_ns)
        jobs = self._after(likeliest[:count])
        self._jobs += jobs
        return jobs

    def drop(self) -> tuple[int, int, bool]:
        """Ends all predrafts; returns the arguments of `FanOut.observe`."""
        elapsed_ns = time.perf_counter_ns() - self._began_ns
        self._scheduler.drop(self._jobs)
        was_served = not self._jobs or any(job.num_passes for job in self._jobs)
        for job in self._jobs:
            job.settle()
        return len(self._draft), elapsed_ns, was_served


class Announcer:
    """Passes drafted tokens from the engine's thread to `on_predrafts`, several at a time.

    A predraft without tokens announces that it has been started.
    """

    def __init__(self, context_length: int, on_predrafts: OnPredrafts) -> None:
        self._context_length = context_length
        self._on_predrafts = on_predrafts
        self._loop = asyncio.get_running_loop()
        self._grown: dict[Drafting, Predraft] = {}

    def __call__(self, job: Drafting) -> None:
        """Called when `job` begins after an outcome, and when it has drafted a token."""
        self._loop.call_soon_threadsafe(self._add, job, job.predrafted(self._context_length))

    def _add(self, job: Drafting, predrafted: Predraft) -> None:
        if not self._grown:
            self._loop.call_soon(self._flush)
        self._grown[job] = predrafted

    def _flush(self) -> None:
        grown = [predrafted for job, predrafted in self._grown.items() if not job.is_dropped]
        self._grown.clear()
        if grown:
            self._on_predrafts(grown)
