"""Child processes that behave, fail, and refuse to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outrider.errors import ServiceUnavailable
from outrider.processes import ServiceProcess, to_arguments

GOOD = """
import sys
print("loading weights", flush=True)
print("ready 127.0.0.1:1234", flush=True)
sys.stdin.read()
"""
BROKEN = """
import sys
print("loading weights", flush=True)
print("a warning", file=sys.stderr)
print("error: the disk is full", file=sys.stderr)
sys.exit(1)
"""
CRASHING = "raise ValueError('unforeseen')"
STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready 127.0.0.1:1234", flush=True)
while True:
    signal.pause()
"""
CHILD = """
import signal
from outrider.processes import exit_with_parent
exit_with_parent()
print("ready 127.0.0.1:1234", flush=True)
signal.pause()
"""
PARENT = """
import os, signal
from outrider.processes import ServiceProcess
child = ServiceProcess("child", [])
child.wait_until_ready()
print(child._process.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = {
        "good": GOOD,
        "broken": BROKEN,
        "crashing": CRASHING,
        "stubborn": STUBBORN,
        "child": CHILD,
        "parent": PARENT,
    }
    for name, script in scripts.items():
        (tmp_path / f"{name}.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("modules")
class TestServiceProcess:
    def test_reports_what_loads_and_where_it_serves(self) -> None:
        loading: list[str] = []
        with ServiceProcess("good", []) as process:
            assert process.wait_until_ready(loading.append) == "127.0.0.1:1234"
            assert process.poll() is None
        assert process.poll() is not None
        assert loading == ["weights"]

    def test_a_users_error_is_told_in_its_own_words(self) -> None:
        with (
            ServiceProcess("broken", []) as process,
            pytest.raises(ServiceUnavailable, match="status 1: the disk is full"),
        ):
            process.wait_until_ready()

    def test_a_crash_shows_the_end_of_the_log(self) -> None:
        with (
            ServiceProcess("crashing", []) as process,
            pytest.raises(ServiceUnavailable, match="ValueError: unforeseen"),
        ):
            process.wait_until_ready()

    def test_one_that_ignores_sigterm_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("outrider.processes._STOP_SECONDS", 0.1)
        with ServiceProcess("stubborn", []) as process:
            process.wait_until_ready()
        assert process.poll() == -signal.SIGKILL

    def test_a_killed_parent_leaves_no_child(self) -> None:
        parent = subprocess.Popen(
            [sys.executable, "-m", "parent"], stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        child = os.pidfd_open(pid)
        parent.kill()
        parent.wait()
        assert wait_for_end(child)


def wait_for_end(pidfd: int) -> bool:
    """Whether the process ends within ten seconds."""
    import select

    ready, _, _ = select.select([pidfd], [], [], 10)
    os.close(pidfd)
    return bool(ready)


def test_settings_become_flags() -> None:
    settings = {"model": "x", "max_context_length": 5, "threads": None}
    assert to_arguments(settings) == ["--model", "x", "--max-context-length", "5"]
