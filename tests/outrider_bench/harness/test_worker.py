"""Worker processes. (A file that imports little: the workers import it, too.)"""

from __future__ import annotations

import os

import pytest

from outrider.errors import ConfigurationError, ServiceUnavailable
from outrider_bench.harness.worker import Worker

pytestmark = pytest.mark.process


def load(number: int) -> None:
    if number < 0:
        raise ConfigurationError("a negative number")
    os.environ["LOADED"] = str(number)


def loaded() -> str:
    return os.environ["LOADED"]


def die() -> None:
    os._exit(3)


def test_a_worker_keeps_what_it_loaded_and_says_when_it_dies() -> None:
    with Worker("doomed", None) as worker:
        worker.run(load, 7)
        assert worker.run(loaded) == "7"
        with pytest.raises(ServiceUnavailable, match="doomed: the process died"):
            worker.run(die)
    with (
        Worker("mistaken", None) as worker,
        pytest.raises(ConfigurationError, match="a negative number"),
    ):
        worker.run(load, -1)
