from __future__ import annotations

import pytest

from orchestrator.forecast import Forecast, Work


def work(num_tokens: int, num_prompt_tokens: int = 0, may_end: bool = False) -> Work:
    return Work(num_prompt_tokens, num_tokens, may_end)


def test_what_was_never_seen_takes_no_time() -> None:
    assert Forecast().seconds(work(512, 100), num_running=1) == 0


def test_tokens_take_what_tokens_took_lately() -> None:
    forecast = Forecast()
    forecast.saw_tokens(1, 0.09, 3)
    assert forecast.seconds(work(512), 1) == pytest.approx(512 * 0.03)
    assert forecast.seconds(work(512), 1, num_done=500) == pytest.approx(12 * 0.03)
    for _ in range(8000):
        forecast.saw_tokens(1, 0.06, 1)  # the machine has become slower
    assert forecast.seconds(work(100), 1) == pytest.approx(6.0, rel=0.01)


def test_a_slow_start_is_soon_forgotten() -> None:
    forecast = Forecast()
    for seconds in [0.2] * 20 + [0.02] * 60:
        forecast.saw_tokens(1, seconds, 1)
    assert forecast.seconds(work(100), 1) == pytest.approx(2.0, rel=0.6)  # the mean is 6.5


def test_what_a_full_batch_takes_is_told_apart_from_what_a_text_alone_takes() -> None:
    forecast = Forecast()
    forecast.saw_tokens(1, 0.03, 1)
    assert forecast.seconds(work(10), num_running=16) == pytest.approx(0.3)  # as far as is known
    for _ in range(10):
        forecast.saw_tokens(16, 0.12, 1)
    assert forecast.seconds(work(10), num_running=1) == pytest.approx(0.3)
    assert forecast.seconds(work(10), num_running=16) == pytest.approx(1.2)
    assert forecast.seconds(work(10), num_running=9) == pytest.approx(1.2)  # the nearest


def test_a_long_prompt_is_not_taken_for_slow_tokens() -> None:
    forecast = Forecast()
    forecast.saw_tokens(1, 0.03, 1)
    forecast.saw_prompt(1, 9.03, work(2, 1500), num_tokens=1)
    assert forecast.seconds(work(100, 10), 1) == pytest.approx(100 * 0.03 + 10 * 0.006)
    assert forecast.seconds(work(100, 1500), 1) == pytest.approx(100 * 0.03 + 9)
    assert forecast.seconds(work(100, 1500), 1, num_done=1) == pytest.approx(99 * 0.03)


def test_texts_that_may_end_are_as_long_as_such_texts_are() -> None:
    forecast = Forecast()
    forecast.saw_tokens(1, 0.03, 1)
    for num_tokens in (30, 50):
        forecast.saw_text(work(512, may_end=True), num_tokens, ended=True)
    forecast.saw_text(work(512), 512, ended=False)  # could not end, and tells nothing
    mean = forecast.seconds(work(512, may_end=True), 1) / 0.03
    assert mean == pytest.approx(40, rel=0.1)
    assert forecast.seconds(work(10, may_end=True), 1) < 10 * 0.03
    assert forecast.seconds(work(512), 1) == pytest.approx(512 * 0.03)


def test_texts_that_were_cut_off_tell_that_they_are_longer() -> None:
    forecast = Forecast()
    forecast.saw_tokens(1, 1.0, 1)
    forecast.saw_text(work(100, may_end=True), 20, ended=True)
    before = forecast.seconds(work(1000, may_end=True), 1)
    forecast.saw_text(work(100, may_end=True), 100, ended=False)
    assert forecast.seconds(work(1000, may_end=True), 1) > 2 * before


def test_what_is_forgotten_is_what_was_seen_at_that_load() -> None:
    forecast = Forecast()
    forecast.saw_tokens(1, 3.0, 1)
    forecast.saw_tokens(16, 0.1, 1)
    forecast.forget(work(10), num_running=1)
    assert forecast.seconds(work(10), 1) == pytest.approx(1.0)
