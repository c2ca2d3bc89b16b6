"""Lessons: the target's likeliest tokens, their probabilities, and hidden states, by position."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from outrider.distill.shared.texts import Array, Arrays, Texts
from outrider.engine.chunk import Capture, Chunk
from outrider.engine.engine import Engine

NUM_TOP_TOKENS = 48
_TOKENS_PER_PASS = 1024


@dataclass(frozen=True)
class Lesson(Arrays):
    """For each token of some texts, the target's probabilities for the token after it."""

    top_ids: Array  # [num_tokens, NUM_TOP_TOKENS], likeliest first
    top_probs: Array  # [num_tokens, NUM_TOP_TOKENS], float16

    @classmethod
    def joined(cls, parts: "list[Lesson]") -> "Lesson":
        return cls(
            np.concatenate([part.top_ids for part in parts]),
            np.concatenate([part.top_probs for part in parts]),
        )


def teach(engine: Engine, texts: Texts, layers: Sequence[int] = ()) -> tuple[Lesson, Array]:
    """Reads the texts, several in a pass.

    Returns the lesson, and of `layers` the hidden states that enter them, [num_tokens, len(layers)
    * hidden_size], as the bits of bfloat16.
    """
    parts: list[tuple[Lesson, Array]] = []
    waiting: list[list[int]] = []
    for text in texts:
        full = sum(map(len, waiting)) + len(text) > _TOKENS_PER_PASS
        if waiting and (full or len(waiting) == engine.cache.num_slots):
            parts.append(_read(engine, waiting, layers))
            waiting = []
        waiting.append(text)
    parts.append(_read(engine, waiting, layers))
    lessons, states = zip(*parts, strict=True)
    return Lesson.joined(list(lessons)), np.concatenate(states)


def _read(engine: Engine, texts: list[list[int]], layers: Sequence[int]) -> tuple[Lesson, Array]:
    captures = [Capture(tuple(layers)) if layers else None for _ in texts]
    chunks = [
        Chunk(slot, 0, text, len(text), capture=capture)
        for slot, (text, capture) in enumerate(zip(texts, captures, strict=True))
    ]
    logits = torch.cat(engine.forward(chunks)).float()  # [num_tokens, vocab_size]
    top = logits.topk(min(NUM_TOP_TOKENS, logits.shape[-1]), dim=-1)
    probs = (top.values - logits.logsumexp(dim=-1, keepdim=True)).exp()
    ids = engine.logit_token_ids[top.indices]
    lesson = Lesson(ids.cpu().numpy().astype(np.uint32), probs.cpu().numpy().astype(np.float16))
    rows = [capture.rows for capture in captures if capture and capture.rows is not None]
    states = torch.cat(rows) if rows else torch.zeros(len(logits), 0)
    return lesson, states.bfloat16().view(torch.uint16).cpu().numpy()
