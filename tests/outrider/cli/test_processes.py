"""Child processes that behave, fail, and refuse to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from outrider.cli.processes import ServiceProcess, running_system, to_arguments
from outrider.errors import ServiceUnavailable

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
NOISY = r"""
import os, sys
os.write(1, b"loading \xff\\n")
os.write(2, b"error: \xff is no name\\n")
sys.exit(1)
"""
STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready 127.0.0.1:1234", flush=True)
while True:
    signal.pause()
"""
CHILD = """
import signal
from outrider.exits import exit_with_parent
exit_with_parent()
print("ready 127.0.0.1:1234", flush=True)
signal.pause()
"""
PARENT = """
import os, signal
from outrider.cli.processes import ServiceProcess
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
        "noisy": NOISY,
        "child": CHILD,
        "parent": PARENT,
    }
    for name, script in scripts.items():
        (tmp_path / f"{name}.py").write_text(script)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.process
@pytest.mark.usefixtures("modules")
class TestServiceProcess:
    def test_is_not_what_lies_about_where_it_was_started(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "elsewhere"
        folder.mkdir()
        (folder / "good.py").write_text("raise ImportError")
        monkeypatch.chdir(folder)
        with ServiceProcess("good", []) as process:
            assert process.wait_until_ready()

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

    def test_output_in_another_encoding_is_shown_as_it_may(self) -> None:
        with (
            ServiceProcess("noisy", []) as process,
            pytest.raises(ServiceUnavailable, match=r"status 1: . is no name"),
        ):
            process.wait_until_ready()

    def test_one_that_ignores_sigterm_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("outrider.cli.processes._STOP_SECONDS", 0.1)
        with ServiceProcess("stubborn", []) as process:
            process.wait_until_ready()
        assert process.poll() == -signal.SIGKILL

    def test_it_has_time_to_drain_until_a_second_interrupt(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[float] = []

        def interrupted(timeout: float | None = None) -> None:
            if timeout is not None:
                waits.append(timeout)
                raise KeyboardInterrupt

        with ServiceProcess("stubborn", [], drain_seconds=60) as process:
            process.wait_until_ready()
            with monkeypatch.context() as patch:
                patch.setattr(process._process, "wait", interrupted)
                process.stop()
            assert process._process.wait(10) == -signal.SIGKILL
        assert waits == [60 + 10]

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


# Each tells what it was started with, serves until its parent is gone, and dies of a wish.
SERVICE = """
import os, sys
from pathlib import Path
module = Path(sys.argv[0]).stem
Path(__file__).with_suffix(".arguments").write_text(" ".join(sys.argv[1:]))
if "dies" in sys.argv:
    sys.exit("error: no memory")
print(f"loading {module}", flush=True)
print(f"ready {module}:1", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with stand-ins of the three services, found before the real ones."""
    for name in ("draft_service", "target_service", "orchestrator"):
        (tmp_path / f"{name}.py").write_text(SERVICE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.process
class TestRunningSystem:
    def test_the_orchestrator_gets_the_addresses_of_the_models(self, services: Path) -> None:
        loading: list[str] = []
        with running_system({"model": "big"}, {"model": "small"}, {"port": 0}, loading.append) as (
            address,
            processes,
        ):
            assert address == "orchestrator:1"
            assert all(process.poll() is None for process in processes)
        assert all(process.poll() is not None for process in processes)
        quiet = "--log-level warning --drain-seconds 0.0"
        assert (services / "target_service.arguments").read_text() == f"{quiet} --model big"
        arguments = (services / "orchestrator.arguments").read_text().split()
        told = dict(zip(arguments[::2], arguments[1::2], strict=True))
        assert told == {
            "--draft": "draft_service:1",
            "--target": "target_service:1",
            "--port": "0",
            "--log-level": "warning",
            "--drain-seconds": "0.0",
        }
        assert set(loading) == {
            "target: target_service",
            "draft: draft_service",
            "orchestrator",
        }

    def test_no_draft_is_not_started(self, services: Path) -> None:
        with running_system({}, None, {}) as (_, processes):
            assert [process.name for process in processes] == ["target_service", "orchestrator"]
        assert "--draft none" in (services / "orchestrator.arguments").read_text()

    @pytest.mark.usefixtures("services")
    def test_the_first_failure_ends_the_others(self) -> None:
        with (
            pytest.raises(ServiceUnavailable, match=r"draft_service ended.* no memory"),
            running_system({}, {"model": "dies"}, {}),
        ):
            pass

    @pytest.mark.usefixtures("services")
    def test_a_service_that_died_meanwhile_is_why_a_call_failed(self) -> None:
        with (
            pytest.raises(ServiceUnavailable, match="target_service was killed by SIGKILL"),
            running_system({}, None, {}) as (_, [target, _orchestrator]),
        ):
            target._process.kill()
            target._process.wait()
            raise ServiceUnavailable("connection refused")


def wait_for_end(pidfd: int) -> bool:
    """Whether the process ends within ten seconds."""
    import select

    ready, _, _ = select.select([pidfd], [], [], 10)
    os.close(pidfd)
    return bool(ready)


def test_settings_become_flags() -> None:
    settings = {"model": "x", "max_context_length": 0, "threads": None, "trust": True, "no": False}
    assert to_arguments(settings) == ["--model", "x", "--max-context-length", "0", "--trust"]
