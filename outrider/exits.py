"""How a process ends before its work does: by a signal, or with its parent."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import NoReturn

# Set for a service whose standard input is a pipe that its parent holds open.
EXIT_WITH_PARENT = "OUTRIDER_EXIT_WITH_PARENT"


def exit_at_once(number: int, frame: object = None) -> NoReturn:
    """Ends the process as one that the signal kills. A handler of signals.

    It must be one: the first process of a container has no default action. Nor is anything
    torn down in order, which threads that compute would not survive.
    """
    os._exit(128 + number)


def exit_with_parent() -> None:
    """Ends this process when its parent is gone, if it was started by `ServiceProcess`."""
    if os.environ.pop(EXIT_WITH_PARENT, None):
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
