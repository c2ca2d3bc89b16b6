from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from outrider.engine.chunk import Chunk
from outrider.engine.scheduling import batch_limits as batch_limits


class Machine:
    """Passes take what `cost_ms` says, on a clock of their own."""

    def __init__(self, cost_ms: Callable[[int], float], max_context_length: int = 2048) -> None:
        self.max_context_length = max_context_length
        self.now_ms = 0.0
        self._cost_ms = cost_ms

    def forward(self, chunks: Sequence[Chunk]) -> None:
        self.now_ms += self._cost_ms(sum(len(chunk.token_ids) for chunk in chunks))


@pytest.mark.parametrize(
    ("cost_ms", "budget"),
    [
        (lambda n: 16 + 4 * n, 32),  # a CPU: a step of 8 takes 48 ms, 24 tokens 112
        (lambda n: 40 + n, 64),
        (lambda n: 8 + n / 400, 2048),  # a GPU
        (lambda n: n, 32),  # the least, whatever it takes
    ],
)
def test_the_budget_follows_what_passes_take(
    monkeypatch: pytest.MonkeyPatch, cost_ms: Callable[[int], float], budget: int
) -> None:
    machine = Machine(cost_ms)
    monkeypatch.setattr(batch_limits.time, "perf_counter", lambda: machine.now_ms / 1e3)
    measured = batch_limits.measure_batch_limits(machine)
    assert measured.token_budget == budget
    assert measured.gather_seconds == pytest.approx(max(0.001, cost_ms(1) / 16e3))
    assert measured.token_seconds == pytest.approx((cost_ms(2) - cost_ms(1)) / 1e3)


def test_a_wide_pass_that_is_not_recorded_is_not_held_against_its_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Recorded steps take a fraction of any other pass."""
    machine = Machine(lambda n: 0.2 if n <= 16 else 2 + n / 1000)
    monkeypatch.setattr(batch_limits.time, "perf_counter", lambda: machine.now_ms / 1e3)
    assert batch_limits.measure_batch_limits(machine).token_budget == 32
    assert batch_limits.measure_batch_limits(machine, replays_steps=True).token_budget == 1024


def test_no_pass_is_longer_than_the_context() -> None:
    machine = Machine(lambda n: 0.0, max_context_length=100)
    assert batch_limits.measure_batch_limits(machine).token_budget <= 96


def test_a_context_shorter_than_a_step_is_measured_within_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths: list[int] = []

    def cost_ms(num_tokens: int) -> float:
        lengths.append(num_tokens)
        return 10 + num_tokens

    machine = Machine(cost_ms, max_context_length=2)
    monkeypatch.setattr(batch_limits.time, "perf_counter", lambda: machine.now_ms / 1e3)
    assert batch_limits.measure_batch_limits(machine).token_seconds == pytest.approx(0.001)
    assert max(lengths) == 2
