"""Who goes first where a model takes all cores."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

# Enough that a thread which wakes up for a moment need not wait for one that computes.
_NICENESS = 5


def give_way() -> None:
    """Lets other threads go before this one, and before those that it will start.

    For the thread that runs a model: whoever answers requests or health checks
    needs a core for a moment only, but at once. Linux keeps such a priority for each thread;
    elsewhere nothing happens.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):  # forbidden in some containers
            niceness = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(19, niceness + _NICENESS))
