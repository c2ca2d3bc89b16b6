from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from click.testing import CliRunner

from outrider.cli import main as cli
from outrider.v1 import generation_pb2 as pb
from tests.support.scripted_service import ScriptedService, serving

EARLIER = pb.ServerActivity(
    uptime_ns=10_000_000_000,
    num_prompt_tokens=100,
    num_output_tokens=50,
    num_steps=10,
    draft_tokens_by_position=[10, 5],
    accepted_tokens_by_position=[9, 5],
    critical_path=[pb.StageDuration(stage="verify_compute", duration_ns=5_000_000_000)],
)
LATER = pb.ServerActivity(
    uptime_ns=12_000_000_000,
    num_queued_requests=7,
    num_running_requests=3,
    num_ended_requests=40,
    num_prompt_tokens=100,
    num_output_tokens=110,
    num_steps=30,
    num_cache_hits=5,
    num_lookup_steps=2,
    draft_tokens_by_position=[30, 25, 10],
    accepted_tokens_by_position=[19, 10, 0],
    critical_path=[
        pb.StageDuration(stage="verify_compute", duration_ns=5_300_000_000),
        pb.StageDuration(stage="draft_compute", duration_ns=100_000_000),
    ],
)


@pytest.fixture
def service() -> Iterator[tuple[ScriptedService, str]]:
    with serving() as running:
        yield running


def once(service: tuple[ScriptedService, str], *activities: pb.ServerActivity) -> str:
    scripted, address = service
    scripted.activities.extend(activities)
    flags = ["--address", address, "--interval", "0.01", "--once"]
    return CliRunner().invoke(cli.cli, ["top", *flags], catch_exceptions=False).stdout


def line(output: str, begin: str) -> list[str]:
    [found] = [line.split() for line in output.splitlines() if line.startswith(begin)]
    return found


def test_a_frame_shows_what_happened_between_two_looks(
    service: tuple[ScriptedService, str],
) -> None:
    output = once(service, EARLIER, LATER)
    assert "3 running, 7 queued, 40 ended" in output
    assert "30.0 tokens/s · 0.0 prompt tokens/s · 110 tokens since" in output
    assert line(output, "0   ")[:3] == ["0", "20", "50.0%"]
    assert line(output, "1   ")[:3] == ["1", "20", "25.0%"]
    assert line(output, "2   ")[:3] == ["2", "10", "0.0%"]
    assert "30.0% of draft tokens accepted · 1.75 tokens a step" in output
    assert "drafts: 25.0% predrafted, 10.0% looked up" in output
    assert line(output, "verify_compute")[1:3] == ["300.0", "75.0%"]
    assert line(output, "draft_compute")[1:3] == ["100.0", "25.0%"]


def test_where_nothing_happens_it_shows_what_was_since_the_start(
    service: tuple[ScriptedService, str],
) -> None:
    output = once(service, LATER, LATER)
    assert "0.0 tokens/s" in output
    assert "accepted at position (since the start)" in output
    assert line(output, "0   ")[1] == "30"
    assert line(output, "verify_compute")[1] == "5300.0"


def test_another_process_at_the_same_address_starts_anew(
    service: tuple[ScriptedService, str],
) -> None:
    output = once(service, LATER, EARLIER)
    assert "5.0 tokens/s" in output
    assert line(output, "0   ")[1] == "10"


def test_and_so_does_one_that_has_run_for_longer_by_then(
    service: tuple[ScriptedService, str],
) -> None:
    another = pb.ServerActivity(uptime_ns=14_000_000_000, num_output_tokens=28)
    assert "2.0 tokens/s" in once(service, LATER, another)


def test_an_orchestrator_that_has_done_nothing(service: tuple[ScriptedService, str]) -> None:
    output = once(service)
    assert "the-target with no draft · up 1:02:05" in output
    assert "no draft tokens yet" in output


def test_without_an_orchestrator_it_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["top", "--address", "127.0.0.1:1"])
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: cannot connect to 127.0.0.1:1: Connection refused\n"


def press_q(process: subprocess.Popen[Any], terminal: int) -> None:
    os.write(terminal, b"q")


def interrupt(process: subprocess.Popen[Any], terminal: int) -> None:
    process.send_signal(signal.SIGINT)


def read_all(terminal: int) -> None:
    """Reads until the other side is closed."""
    with suppress(OSError):
        while os.read(terminal, 65536):
            pass


@pytest.mark.process
@pytest.mark.parametrize("end", [press_q, interrupt])
def test_live_until_told_to_end(end: Any, service: tuple[ScriptedService, str]) -> None:
    scripted, address = service
    scripted.activities.extend([EARLIER, LATER])
    terminal, side = pty.openpty()
    before = termios.tcgetattr(side)
    program = "from outrider.cli.main import main; main()"
    arguments = ["top", "--address", address, "--interval", "0.05"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=side,
        stdout=side,
        stderr=side,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
    )
    shown = b""
    while b"30.0 tokens/s" not in shown:  # the second frame
        shown += os.read(terminal, 65536)
    # A terminal is read all the time: once it is full, a program that writes to it stops.
    reading = threading.Thread(target=read_all, args=(terminal,))
    reading.start()
    end(process, terminal)
    assert process.wait(30) == 0
    assert termios.tcgetattr(side) == before
    os.close(side)
    reading.join()
    os.close(terminal)


@pytest.mark.parametrize("arguments", [["top", "--interval", "0.01", "--once"], ["info"]])
def test_a_draft_that_is_missing_is_named_and_since_when(
    service: tuple[ScriptedService, str], arguments: list[str]
) -> None:
    scripted, address = service
    scripted.outage = pb.DraftOutage(
        address="10.0.0.2:50052", reason="no answer for 5 s", since_ms=1_700_000_000_000
    )
    output = CliRunner().invoke(cli.cli, [*arguments, "--address", address]).stdout
    [shown] = [line for line in output.splitlines() if line.startswith("no draft since")]
    assert re.search(r"since 2023-11-1\d \d\d:\d\d:\d\d ", shown)
    assert shown.endswith("no answer for 5 s (at 10.0.0.2:50052)")
