"""The loop in one process, with a draft of tokens only and with one that reads hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from outrider.engine.options import EngineOptions
from outrider_bench.baselines import one_process
from outrider_bench.runs import Run, Task
from tests.support.claims import needs_invariant
from tests.support.models.eagle3 import make_eagle3

PROMPT = [5 + i * i % 200 for i in range(30)]
# So hot that the shared noise decides for both models, and most of the draft is accepted.
HOT = 50.0


@pytest.fixture(params=["tokens", "hidden states"])
def loaded(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_models: Callable[..., Path]
) -> Iterator[dict[str, Any]]:
    target = tiny_models("llama")
    draft = target if request.param == "tokens" else make_eagle3(tmp_path, num_ids=250)
    options = [EngineOptions(str(m), "cpu", "float32", slots=2) for m in (target, draft)]
    one_process.load(*options)
    yield one_process._loaded
    for service in ("verifier", "drafter"):
        one_process._loaded[service].close()


@pytest.mark.parametrize("temperature", [0.0, HOT])
def test_the_text_is_the_targets_own(temperature: float, loaded: dict[str, Any]) -> None:
    needs_invariant(loaded["verifier"].engine)

    def text(k: int | None) -> Run:
        task = Task("", max_new_tokens=24, temperature=temperature)
        return one_process.generate(PROMPT, task, k, looks_up=False)

    alone = text(0)
    assert [text(k).token_ids for k in (3, None)] == [alone.token_ids] * 2
