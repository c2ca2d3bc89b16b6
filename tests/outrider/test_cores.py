"""Threads default to the cores that this process may use, a control group's quota included."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from outrider import cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty control group file system, on a machine of 16 cores."""
    monkeypatch.setattr(cores, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(16))
    return tmp_path


def belongs_to(lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "self"
    path.write_text(lines)
    monkeypatch.setattr(cores, "_PROC", path)


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def quota_v1(folder: Path, quota: str) -> None:
    write(folder, cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max 100000", 16), ("100000 100000", 1), ("350000 100000", 3), ("50000 100000", 1)],
)
def test_version_2(
    limit: str, expected: int, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    belongs_to("0::/some/group\n", cgroup, monkeypatch)
    write(cgroup / "some" / "group", cpu__max=limit)
    assert cores.available_cores() == expected


def test_the_tightest_group_around_counts(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    belongs_to("0::/outer/inner\n", cgroup, monkeypatch)
    write(cgroup / "outer", cpu__max="200000 100000")
    write(cgroup / "outer" / "inner", cpu__max="800000 100000")
    assert cores.available_cores() == 2


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("100000", 1), ("250000", 2)])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1(
    mount: str, quota: str, expected: int, cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    belongs_to(f"4:memory:/elsewhere\n2:{mount}:/group\n0::/\n", cgroup, monkeypatch)
    quota_v1(cgroup / mount / "group", quota)
    assert cores.available_cores() == expected


def test_in_a_container_the_outermost_group_is_its_own(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file names the group as the host does, which is not there in the container."""
    belongs_to("2:cpu,cpuacct:/docker/0123abcd\n", cgroup, monkeypatch)
    quota_v1(cgroup / "cpu", "200000")
    assert cores.available_cores() == 2


def test_without_control_groups_affinity_counts(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "_PROC", cgroup / "none")
    assert cores.available_cores() == 16
