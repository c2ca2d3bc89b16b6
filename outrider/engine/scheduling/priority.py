"""Priority of threads when a model uses all cores."""

import os
import sys
import threading
from contextlib import suppress

# Enough that a thread that wakes up for a moment does not wait for one that computes.
_NICENESS = 5


def give_way() -> None:
    """Lowers the priority of this thread, and of those that it will start.

    For the thread that runs a model: handling requests and health checks needs a core only briefly,
    but immediately. Does nothing except on Linux, which has priorities per thread.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # forbidden in some containers
            niceness = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(19, niceness + _NICENESS))
