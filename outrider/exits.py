"""How a process ends before its work does: by a signal, or with its parent."""

import os
import signal
import sys
import threading
from typing import NoReturn

# Set for a service whose standard input is a pipe that its parent holds open.
EXIT_WITH_PARENT = "OUTRIDER_EXIT_WITH_PARENT"


def exit_at_once(number: int, frame: object = None) -> NoReturn:
    """A signal handler that ends the process as if the signal had killed it.

    The first process of a container has no default action for signals. Nothing is torn down in
    order, since threads that compute would not survive that.
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
