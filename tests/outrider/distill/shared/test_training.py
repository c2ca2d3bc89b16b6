"""What a student is taught."""

from __future__ import annotations

import numpy as np
import torch

from outrider.distill.shared.material import Material
from outrider.distill.shared.teaching import Lesson
from outrider.distill.shared.texts import Texts
from outrider.distill.shared.training import distillation_loss

VOCAB_SIZE = 10
# The first is a question of three tokens and an answer of two; the second has no question.
TEXTS = Texts.of([[1, 2, 3, 4, 5], [6, 7]], [3, 0])
HELD_OUT = Texts.of([[8, 9]], [1])


def loss_with(likeliest: dict[int, int]) -> float:
    """Of a student that thinks as the target does, but for what the target finds likeliest
    after some tokens, counted through both texts."""
    texts = Texts.joined([TEXTS, HELD_OUT])
    top_ids = np.zeros((len(texts.token_ids), 1), np.uint32)
    for place, token_id in likeliest.items():
        top_ids[place] = token_id
    lesson = Lesson(top_ids, np.ones(top_ids.shape, np.float16))
    material = Material(texts, lesson, torch.arange(VOCAB_SIZE), 1)
    assert list(material.held_out) == [2]
    logits = torch.zeros(2, 5, VOCAB_SIZE)
    logits[..., 0] = 10.0
    return float(distillation_loss(logits, material.batch([0, 1], torch.device("cpu"))))


def test_answers_are_learned_and_questions_are_not() -> None:
    agreeing = loss_with({})
    questions, answers = (0, 1), (2, 3, 4, 5, 6)  # what comes after tokens 3, 4, 5, 6, 7
    assert all(loss_with({place: 9}) == agreeing for place in questions)
    one_wrong = agreeing + 10 / len(answers)
    for place in answers:
        assert np.isclose(loss_with({place: 9}), one_wrong, rtol=1e-5), place
