"""The draft's choices at each position of texts that the target wrote.

From these the loop can be replayed with other times (`loop_model.py`), and shared noise
compared with rejection sampling: the same texts, models and cache, another rule.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from outrider.engine.chunk import Capture, Chunk, Features
from outrider.engine.scheduling.job import Job
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.protocol.messages import SamplingParams
from outrider.sampling.sampler import filter_logits, rank_tokens
from outrider_bench.models.loop_model import Place

WIDTH = 17  # the draft's first choice and sixteen runners-up


class Reading(Job):
    """A job that reads a whole text and keeps the logits from the last prompt token on."""

    logits: Tensor  # [num_output_tokens, num_ids]

    def __init__(self, slot: int, text: Sequence[int], num_output_tokens: int) -> None:
        super().__init__(slot, 0, text[:-1], num_output_tokens)

    def advance(self, logits: Tensor) -> list[int]:
        self.logits = logits
        return []

    def num_skippable(self, num_known: int) -> int:
        """None: what is copied from another slot has no hidden states, and for a feature draft may
        have come with others."""
        return 0


class FeatureReading(Reading):
    """The same by a feature draft, which reads `rows` beside the tokens behind the first."""

    def __init__(
        self, slot: int, text: Sequence[int], num_output_tokens: int, rows: Tensor
    ) -> None:
        super().__init__(slot, text[1:], num_output_tokens)
        self._rows = rows

    def next_chunk(self, budget: int) -> Chunk:
        chunk = super().next_chunk(budget)
        features = Features(self._rows[chunk.start : chunk.end], False, first_index=1)
        return replace(chunk, features=features)


def read(
    scheduler: Scheduler, text: Sequence[int], num_output_tokens: int, rows: Tensor | None = None
) -> Tensor:
    """The logits, [num_output_tokens, num_ids], from which a model would choose these tokens.

    Args:
        rows: hidden states of the target for a feature draft, [len(text) - 1, width].
    """
    with _slot(scheduler) as slot:
        if rows is None:
            job = Reading(slot, text, num_output_tokens)
        else:
            job = FeatureReading(slot, text, num_output_tokens, rows)
        scheduler.submit(job).result()
        return job.logits


def read_hidden_states(scheduler: Scheduler, text: Sequence[int], layers: Sequence[int]) -> Tensor:
    """What a feature draft reads of all tokens but the last, [len(text) - 1, width]."""
    with _slot(scheduler) as slot:
        job = Reading(slot, text, 1)
        job.capture = Capture(tuple(layers))
        scheduler.submit(job).result()
        taken = job.take_hidden_states()
        assert taken is not None
        return torch.from_numpy(taken[1]).view(torch.bfloat16).float()


@contextmanager
def _slot(scheduler: Scheduler) -> Iterator[int]:
    slot = scheduler.acquire()
    try:
        yield slot
    finally:
        scheduler.release(slot)


def places(
    logits: Tensor, token_ids: Tensor, text: Sequence[int], params: SamplingParams
) -> list[Place]:
    """Compares the draft's choices, under shared noise or greedy, with the end of `text`.

    Args:
        logits: [num_output_tokens, num_ids] of the draft.
        token_ids: [num_ids], the token of each column.
    """
    first_index = len(text) - len(logits)
    found = []
    for index, row in enumerate(logits, first_index):
        choices = rank_tokens(row[None], token_ids, params, index, WIDTH)
        ids = [choice.token_id for choice in choices]
        rank = ids.index(text[index]) if text[index] in ids else WIDTH
        probs = tuple(round(choice.prob, 4) for choice in choices[:9])
        found.append(Place(rank, probs, rank == 0))
    return found


@dataclass(frozen=True)
class Rejection:
    """Speculative sampling by rejection (arXiv 2211.17192) at the positions of a text.

    Args:
        acceptance: probability of acceptance at each position.
        coverage: at each position, the probability that after a rejection the target's token
            is among the draft's first 1, 2, ... runners-up.
        bonus: probability that the draft's likeliest token is the target's.
        probs: the draft's own, for its first choice and its runners-up.
    """

    acceptance: list[float]
    coverage: list[list[float]]
    bonus: list[float]
    probs: list[tuple[float, ...]]

    def places(self, source: random.Random) -> list[Place]:
        """One random outcome: which tokens are accepted, and the ranks of corrections."""
        return [
            Place(
                0 if source.random() < accepted else _draw_rank(covered, source),
                probs,
                source.random() < bonus,
            )
            for accepted, covered, bonus, probs in zip(
                self.acceptance, self.coverage, self.bonus, self.probs, strict=True
            )
        ]


def _draw_rank(coverage: Sequence[float], source: random.Random) -> int:
    chance = source.random()
    return next((r for r, covered in enumerate(coverage, 1) if chance < covered), WIDTH)


def rejection(
    target_logits: Tensor, draft_logits: Tensor, token_ids: Tensor, params: SamplingParams
) -> Rejection:
    """Rejection sampling at each position.

    Args:
        target_logits: [num_tokens, vocab_size]
        draft_logits: [num_tokens, num_ids] for the tokens `token_ids`.
    """
    target_probs = _probs(target_logits, params)
    draft_probs = torch.zeros_like(target_probs)
    draft_probs[:, token_ids] = _probs(draft_logits, params)
    excess = (target_probs - draft_probs).clamp_min(0)
    deficit = (draft_probs - target_probs).clamp_min(0)
    total = excess.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    best = draft_probs.topk(WIDTH, dim=-1)
    corrected = (excess / total).gather(-1, best.indices)  # [num_tokens, WIDTH]
    rejected = (deficit / total).gather(-1, best.indices)
    # The rejected token is not its own runner-up, so the list is longer by one behind it.
    next_in = torch.cumsum(rejected, -1)[:, :-1] * corrected[:, 1:]
    coverage = (torch.cumsum(corrected, -1)[:, :-1] + next_in).clamp_max(1)
    bonus = target_probs.gather(-1, best.indices[:, :1])[:, 0]
    return Rejection(
        (1 - total[:, 0]).tolist(),
        coverage.tolist(),
        bonus.tolist(),
        [tuple(row) for row in best.values[:, :9].tolist()],
    )


def _probs(logits: Tensor, params: SamplingParams) -> Tensor:
    return filter_logits(logits.double() / params.temperature, params).softmax(dim=-1)


def runner_up_coverage(texts: Sequence[Sequence[Place]]) -> dict[int, float]:
    """Where the draft is wrong: how often the text's token is among its first r runners-up."""
    wrong = [place.rank for text in texts for place in text if place.rank]
    return {
        r: round(sum(rank <= r for rank in wrong) / max(1, len(wrong)), 3)
        for r in (1, 2, 3, 4, 5, 6, 7, 8, 16)
    }
