"""A process on given cores that keeps models loaded and runs functions."""

import os
import signal
import threading
from collections.abc import Callable, Set
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from outrider.errors import ServiceUnavailable
from outrider_bench.harness.hosts import bound_to

T = TypeVar("T")


class Worker(AbstractContextManager["Worker"]):
    """Runs functions of a module in another process on `cores`; it ends with the `with` block.

    Args:
        name: for messages.
    """

    def __init__(self, name: str, cores: Set[int] | None) -> None:
        self._name = name
        self._executor = ProcessPoolExecutor(1, get_context("spawn"), _begin)
        with bound_to(cores):
            self._executor.submit(os.getpid)  # which starts the process

    def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Raises the function's exception, or ServiceUnavailable if the process died."""
        try:
            return self._executor.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise ServiceUnavailable(f"{self._name}: the process died") from error

    def __exit__(self, *exc: object) -> None:
        self._executor.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what loads, services tell there, too
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
