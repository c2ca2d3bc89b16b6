"""What `make load` makes of a run of k6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import COLUMNS, draw, row_of, show


def summary(**changes: Any) -> dict[str, Any]:
    """As k6 writes it at the end of a run of ten seconds."""
    trend = {"avg": 5.0, "min": 1.0, "med": 4.0, "p(95)": 9.04, "p(99)": 9.96, "max": 10.0}
    metrics: dict[str, Any] = {
        "outrider_wall": trend,
        "outrider_ttft": trend,
        "outrider_tpot": trend,
        "outrider_tokens": {"count": 640, "rate": 64},
        "outrider_errors": {"passes": 1, "fails": 20, "rate": 1 / 21},
    }
    values = {name: {"values": values} for name, values in (metrics | changes).items() if values}
    return {"state": {"testRunDurationMs": 10_000}, "metrics": values}


def test_a_run_becomes_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    row = row_of(4, summary())
    assert row.keys() == COLUMNS.keys()
    assert (row["users"], row["tokens_per_second"]) == (4, 64.0)
    assert (row["wall_p50_ms"], row["ttft_p95_ms"], row["wall_p99_ms"]) == (4.0, 9.0, 10.0)
    assert (row["requests"], row["errors"]) == (21, 1)  # what passes as an error is one
    show([row])
    assert "64.0" in capsys.readouterr().out


def test_a_run_in_which_nothing_was_answered_has_a_row_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("outrider_wall", "outrider_ttft", "outrider_tpot", "outrider_tokens")
    row = row_of(1, summary(**dict.fromkeys(names), outrider_errors={"passes": 3, "fails": 0}))
    assert (row["tokens_per_second"], row["tpot_p50_ms"], row["errors"]) == (0.0, None, 3)
    show([row])
    assert "-" in capsys.readouterr().out


def test_it_is_drawn_for_the_page(tmp_path: Path) -> None:
    rows = [row_of(users, summary()) for users in (1, 4, 16)]
    assert "virtual users" in draw(rows, tmp_path / "load_users.svg").read_text()
