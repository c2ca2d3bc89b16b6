"""Lessons: the target's likeliest tokens and their probabilities, at every position."""

from dataclasses import dataclass

import numpy as np
import torch

from outrider.distill.texts import Array, Arrays, Texts
from outrider.engine.chunk import Chunk
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


def teach(engine: Engine, texts: Texts) -> Lesson:
    """Reads the texts, several in a pass."""
    parts: list[Lesson] = []
    waiting: list[list[int]] = []
    for text in texts:
        full = sum(map(len, waiting)) + len(text) > _TOKENS_PER_PASS
        if waiting and (full or len(waiting) == engine.cache.num_slots):
            parts.append(_read(engine, waiting))
            waiting = []
        waiting.append(text)
    parts.append(_read(engine, waiting))
    return Lesson.joined(parts)


def _read(engine: Engine, texts: list[list[int]]) -> Lesson:
    chunks = [Chunk(slot, 0, text, len(text)) for slot, text in enumerate(texts)]
    logits = torch.cat(engine.forward(chunks)).float()  # [num_tokens, vocab_size]
    top = logits.topk(min(NUM_TOP_TOKENS, logits.shape[-1]), dim=-1)
    probs = (top.values - logits.logsumexp(dim=-1, keepdim=True)).exp()
    ids = engine.logit_token_ids[top.indices]
    return Lesson(ids.cpu().numpy().astype(np.uint32), probs.cpu().numpy().astype(np.float16))
