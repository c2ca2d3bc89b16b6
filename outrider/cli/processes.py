"""Starts services as processes, waits until they serve, and leaves none behind.

A service prints `loading <what>` lines and then `ready <host>:<port>` on standard
output; its log goes to standard error. It ends when its standard input ends, so it
does not outlive a parent that was killed.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, ExitStack, contextmanager
from queue import Queue

from outrider.errors import ServiceUnavailable
from outrider.exits import EXIT_WITH_PARENT

Progress = Callable[[str], None]

# Python's flag that keeps the current folder, which may have a folder named like a package of
# ours, off the import path.
SAFELY = ("-P",)

# Seconds for the end of a service after its calls have been drained.
_STOP_SECONDS = 10.0
_NUM_LOG_LINES = 15


class ServiceProcess(AbstractContextManager["ServiceProcess"]):
    """A child process `python -m MODULE ARGUMENTS`; stop it, or use it in a `with`.

    Args:
        drain_seconds: how long its calls may continue when it is asked to stop.
    """

    def __init__(self, module: str, arguments: Sequence[str], drain_seconds: float = 0.0) -> None:
        self.name = module
        self.address = ""  # set once it is ready
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by `stop`)
        self._lines: Queue[str | None] = Queue()
        self._stop_seconds = drain_seconds + _STOP_SECONDS
        self._process = subprocess.Popen(
            [sys.executable, *SAFELY, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            errors="replace",
            env={**os.environ, EXIT_WITH_PARENT: "1"},
            # The parent handles Ctrl-C and ends its children in order.
            start_new_session=True,
        )
        threading.Thread(target=self._read_lines, daemon=True).start()

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put(None)

    def wait_until_ready(self, progress: Progress = lambda what: None) -> str:
        """The address that it serves at. Raises ServiceUnavailable if it ends before."""
        while (line := self._lines.get()) is not None:
            kind, _, rest = line.partition(" ")
            if kind == "ready":
                self.address = rest
                return rest
            if kind == "loading":
                progress(rest)
        raise self.failure()

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def failure(self) -> ServiceUnavailable:
        """Why the process ended: a signal, its error message, else the end of its log."""
        status = self._process.wait()
        if status < 0:  # what it logged before says nothing of that
            return ServiceUnavailable(f"{self.name} was killed by {_signal_name(-status)}")
        lines = self.log_lines()
        reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        reason = reasons[-1] if reasons else "\n".join(lines[-_NUM_LOG_LINES:])
        return ServiceUnavailable(f"{self.name} ended with status {status}: {reason}")

    def log_lines(self) -> list[str]:
        """Its lines on standard error; none after `stop`."""
        if self._log.closed:
            return []
        self._log.seek(0)
        return self._log.read().splitlines()

    def stop(self) -> None:
        """Asks it to drain; kills it if it does not end in time, or at a second Ctrl-C."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self._stop_seconds)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def to_arguments(settings: Mapping[str, object]) -> list[str]:
    """Command-line flags for settings: True is a flag alone; None and False are left out."""
    arguments = []
    for name, value in settings.items():
        if value is not None and value is not False:
            arguments.append(f"--{name.replace('_', '-')}")
            arguments.extend([] if value is True else [str(value)])
    return arguments


@contextmanager
def running_system(
    target: Mapping[str, object],
    draft: Mapping[str, object] | None,
    orchestrator: Mapping[str, object],
    progress: Progress = lambda what: None,
    drain_seconds: float = 0.0,
) -> Iterator[tuple[str, list[ServiceProcess]]]:
    """Runs the services with these settings (names of flags); None: without draft.

    Yields the orchestrator's address and the processes, once all serve. All have ended
    afterwards; running calls may continue for `drain_seconds`.

    Raises:
        ServiceUnavailable: one of them did not start, or ended meanwhile; says why.
    """
    with ExitStack() as stack:

        def start(module: str, settings: Mapping[str, object]) -> ServiceProcess:
            # Logs are kept until a process ends, so they should not have a line for every call.
            settings = {"log_level": "warning", "drain_seconds": drain_seconds, **settings}
            process = ServiceProcess(module, to_arguments(settings), drain_seconds)
            return stack.enter_context(process)

        models = {"target": start("target_service", target)}
        if draft is not None:
            models["draft"] = start("draft_service", draft)
        addresses = _wait_for_all(models, progress)
        last = start("orchestrator", {"draft": "none", **addresses, **orchestrator})
        processes = [*models.values(), last]
        address = last.wait_until_ready(progress)
        try:
            yield address, processes
        except ServiceUnavailable:
            for process in processes:
                if process.poll() is not None:
                    raise process.failure() from None
            raise


def _wait_for_all(processes: Mapping[str, ServiceProcess], progress: Progress) -> dict[str, str]:
    """The addresses of processes that start at the same time; the first failure ends it."""

    def wait(name: str) -> str:
        return processes[name].wait_until_ready(lambda what: progress(f"{name}: {what}"))

    executor = ThreadPoolExecutor(len(processes))
    names = {executor.submit(wait, name): name for name in processes}
    executor.shutdown(wait=False)
    return {names[ready]: ready.result() for ready in as_completed(names)}
