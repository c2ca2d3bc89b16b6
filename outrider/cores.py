"""How many CPU cores this process may use: its affinity, and its control group's quota.

Imports no torch, since the commands that start services use it, too.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_PROC = Path("/proc/self/cgroup")
_CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """The number of whole cores that this process may use all the time; at least one.

    With more threads than a quota allows, all are stopped for the rest of each period, which
    costs more than they bring.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """Cores that the control groups around this process allow it (versions 1 and 2)."""
    try:
        lines = _PROC.read_text().splitlines()
    except OSError:
        return  # no control groups
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for group in _groups(_CGROUP, path):
                yield from _quota(*_words(group / "cpu.max", 2))
        elif "cpu" in controllers.split(","):
            for mount in {_CGROUP / controllers, _CGROUP / "cpu"}:
                for group in _groups(mount, path):
                    limit = _words(group / "cpu.cfs_quota_us", 1)
                    yield from _quota(*limit, *_words(group / "cpu.cfs_period_us", 1))


def _groups(mount: Path, path: str) -> Iterator[Path]:
    """The group and those around it. In a container its own may be mounted as the outermost."""
    inner = PurePosixPath(path.lstrip("/"))
    yield mount / inner
    for outer in inner.parents:
        yield mount / outer


def _words(file: Path, count: int) -> list[str]:
    try:
        return file.read_text().split()[:count]
    except OSError:
        return []


def _quota(*words: str) -> Iterator[float]:
    """Of "50000", "100000": microseconds in each period. "max" and -1 are no limit."""
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
        yield int(words[0]) / int(words[1])
