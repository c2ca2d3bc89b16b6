"""Cores, and worker processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from outrider.errors import ConfigurationError, ServiceUnavailable
from outrider_bench.hosts import Hosts, available_cores, bound_to
from outrider_bench.worker import Worker


@pytest.mark.parametrize(
    ("num_cores", "available", "target", "draft"),
    [
        (1, [0, 1], {0}, {1}),
        (2, [0, 2, 4, 6, 8], {0, 2}, {4, 6}),
        (2, [0, 1], None, None),
        (1, [], None, None),
    ],
)
def test_hosts_share_cores_only_where_there_are_too_few(
    num_cores: int, available: list[int], target: set[int] | None, draft: set[int] | None
) -> None:
    hosts = Hosts.of(num_cores, available)
    assert (hosts.target, hosts.draft) == (target, draft)


@pytest.mark.skipif(sys.platform != "linux", reason="processes cannot be bound to cores")
def test_children_stay_on_the_cores_and_the_parent_does_not() -> None:
    before = available_cores()
    with bound_to({before[-1]}):
        program = "import os; print(*os.sched_getaffinity(0))"
        finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.stdout.split() == [str(before[-1])]
    assert available_cores() == before
    with bound_to(None):
        assert available_cores() == before


def load(number: int) -> None:
    if number < 0:
        raise ConfigurationError("a negative number")
    os.environ["LOADED"] = str(number)


def loaded() -> str:
    return os.environ["LOADED"]


def die() -> None:
    os._exit(3)


def test_a_worker_keeps_what_it_loaded_and_says_when_it_dies() -> None:
    with Worker("doomed", None, load, 7) as worker:
        worker.wait_until_loaded()
        assert worker.run(loaded) == "7"
        with pytest.raises(ServiceUnavailable, match="doomed: the process died"):
            worker.run(die)
    with (
        Worker("mistaken", None, load, -1) as worker,
        pytest.raises(ConfigurationError, match="a negative number"),
    ):
        worker.wait_until_loaded()
