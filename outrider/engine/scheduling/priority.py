"""Priority of threads where a model takes all cores."""

import os
import sys
import threading
from contextlib import suppress

# Enough that a thread that wakes up for a moment does not wait for one that computes.
_NICENESS = 5


def give_way() -> None:
    """Gives other threads priority over this one, and over those that it will start.

    For the thread that runs a model: answers to requests and health checks need a core for a
    moment only, but at once. Linux has priorities of threads; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # forbidden in some containers
            niceness = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(19, niceness + _NICENESS))
