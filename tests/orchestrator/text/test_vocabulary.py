from __future__ import annotations

import pytest

from orchestrator.text.vocabulary import check_compatible
from outrider.errors import VocabularyMismatch
from outrider.protocol.messages import ModelInfo

TARGET = ModelInfo("big", max_context_length=100, vocab_size=8)
DRAFT = ModelInfo("small", max_context_length=100, vocab_size=8)


def test_ids_that_one_of_them_lacks_are_fine() -> None:
    check_compatible(TARGET, DRAFT, {"a": 0, "b": 1, "c": 2}, {"a": 0, "b": 1})
    check_compatible(TARGET, DRAFT, {"a": 0}, {"a": 0, "extra": 7})


def test_an_id_with_two_meanings_is_refused_with_names_and_tokens() -> None:
    with pytest.raises(VocabularyMismatch) as caught:
        check_compatible(TARGET, DRAFT, {"a": 0, "b": 1, "c": 2}, {"a": 0, "c": 1, "b": 2})
    message = caught.value.message
    for part in ("big", "small", "2 of 3", "id 1", "'c' for the draft", "'b' for the target"):
        assert part in message
