"""What `make load` makes of runs of k6 and ghz."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ghz_figures import answered_per_second
from benchmarks.ghz_files import closed_loop, open_loop
from benchmarks.load import COLUMNS, row_of, row_of_report, show
from benchmarks.support.ghz import Call, Report, percentile, read_report
from outrider_bench.output.plots import write_plots


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
    assert row.keys() >= COLUMNS.keys()
    assert (row["load"], row["tokens_per_second"]) == ("4 users", 64.0)
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


# Of a run of four seconds, as ghz writes it: time stamps are of a call's end.
REPORT = {
    "total": 4_000_000_000,
    "details": [
        {
            "timestamp": f"2026-11-30T12:00:{second:02}.123456789Z",
            "latency": second * 1_000_000_000,
            "status": status,
            "error": error,
        }
        for second, status, error in (
            (3, "OK", ""),
            (1, "OK", ""),
            (2, "OK", ""),
            (4, "ResourceExhausted", "rpc error: code = ResourceExhausted"),
        )
    ],
}


def test_a_report_of_ghz_is_read() -> None:
    report = read_report(json.dumps(REPORT))
    assert report.statuses == {"OK": 3, "ResourceExhausted": 1}
    assert report.seconds_of("OK") == pytest.approx([1, 2, 3])
    assert report.calls[0].began == pytest.approx(report.calls[3].began)
    assert read_report('{"total": 1, "details": null}').calls == ()


@pytest.mark.parametrize(("percent", "seconds"), [(50, 2.0), (95, 3.0), (100, 3.0), (1, 1.0)])
def test_percentiles_are_those_of_ghz(percent: float, seconds: float) -> None:
    assert percentile([1.0, 2.0, 3.0], percent) == seconds
    assert percentile([], percent) is None


def test_a_report_of_ghz_becomes_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    report = read_report(json.dumps(REPORT))
    closed = row_of_report(closed_loop(8), report, 32)
    opened = row_of_report(open_loop(2), report, 16)
    assert closed.keys() >= COLUMNS.keys()
    assert (closed["load"], closed["tokens_per_second"]) == ("8 users", 24.0)
    assert (opened["load"], opened["tokens_per_second"]) == ("2 a second", 12.0)
    assert (closed["wall_p50_ms"], closed["requests"], closed["errors"]) == (2000.0, 4, 1)
    show([closed, opened])
    assert "2 a second" in capsys.readouterr().out


def test_what_is_answered_of_an_overload_is_counted_behind_its_beginning() -> None:
    """Neither while the loop fills nor when no more calls are begun."""
    ended = [1.0, 6.0, 7.0, 8.0, 14.9, 15.1]
    calls = [Call(0.0, at, "OK", "") for at in ended] + [Call(0.0, 9.0, "ResourceExhausted", "")]
    assert answered_per_second(Report(tuple(calls), 16.0), 15) == pytest.approx(4 / 10)


@pytest.mark.parametrize("has_ghz", [False, True])
def test_it_is_drawn_for_the_page(has_ghz: bool, tmp_path: Path) -> None:
    rows = [row_of(users, summary()) for users in (1, 4, 16)]
    if has_ghz:
        report = read_report(json.dumps(REPORT))
        rows += [row_of_report(closed_loop(users), report, 32) for users in (1, 4, 16)]
        rows += [row_of_report(open_loop(rate), report, 16) for rate in (1, 2)]
    (tmp_path / "load.json").write_text(json.dumps({"figures": rows}))
    [plot] = write_plots(tmp_path / "load.json")
    assert plot.name == "load_users.svg"
    assert "virtual users" in plot.read_text()
