"""How the process of a server ends, and that of a command which is none."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

RUN = """
import asyncio
from outrider.settings.options import ServerOptions, run_service
from outrider.serving.server import run
import click

async def main():
    {body}

@click.command("target")
def command():
    run(main(), ServerOptions(), "target")

print("begun", flush=True)
{outside}
run_service(command)
"""


def process(body: str = "pass", outside: str = "pass") -> subprocess.Popen[str]:
    script = RUN.format(body=body, outside=outside)
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_failed_engine_ends_the_process_whatever_its_threads_do() -> None:
    body = """
    import threading
    threading.Thread(target=threading.Event().wait).start()  # not even a daemon
    from outrider.errors import EngineFailed
    raise EngineFailed("no device")
    """
    with process(body) as child:
        _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (1, "error: no device\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handled_before_there_is_a_loop(number: signal.Signals) -> None:
    """The first process of a container has no default actions, so there must be handlers."""
    body = """
    import threading
    print("waiting", flush=True)
    threading.Event().wait()
    """
    with process(body) as child:
        assert child.stdout is not None
        assert [child.stdout.readline(), child.stdout.readline()] == ["begun\n", "waiting\n"]
        child.send_signal(number)
        _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (128 + number, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_that_is_no_service_in_order(number: signal.Signals) -> None:
    """As the benchmark's, which has processes to end and a folder to remove."""
    script = """
import signal
import threading
import click
from outrider.settings.options import run_command

@click.command("bench")
def command():
    try:
        print("waiting", flush=True)
        threading.Event().wait()
    finally:
        print("in order", flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # maybe ignored by our own parent
run_command(command)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        child.send_signal(number)
        output, _ = child.communicate(timeout=60)
    assert (child.returncode, output) == (1, "in order\n")
