from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from outrider.huge_pages import HUGE_PAGES

NAME, VALUE = HUGE_PAGES
ALLOWED = Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="Linux only"),
]

STARTED = (
    "import os, sys; from outrider.huge_pages import start_with_huge_pages;"
    f"start_with_huge_pages(); print(os.getpid(), os.environ['{NAME}'], *sys.argv[1:]);"
)
TOUCHED = (
    "some = bytearray(64 << 20); some[::4096] = b'1' * (64 << 8);"
    "print(sum(int(l.split()[1]) for l in open('/proc/self/smaps') if l.startswith('AnonHuge')))"
)


def started(code: str, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """The process that was started, and the words that it printed."""
    others = {name: value for name, value in os.environ.items() if name != NAME}
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(
        command, env={**others, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        return process.pid, process.stdout.read().split()


def test_a_program_starts_again_once_in_its_process_with_its_arguments() -> None:
    pid, words = started(STARTED, "--slots", "4")
    assert words == [str(pid), VALUE, "--slots", "4"]


def test_what_somebody_has_set_stays() -> None:
    pid, words = started(STARTED, **{NAME: "glibc.malloc.hugetlb=0"})
    assert words == [str(pid), "glibc.malloc.hugetlb=0"]


def test_large_blocks_are_in_huge_pages() -> None:
    libc, version = os.confstr("CS_GNU_LIBC_VERSION").split()  # type: ignore[union-attr]
    if libc != "glibc" or tuple(map(int, version.split("."))) < (2, 35):
        pytest.skip("this C library has no such setting")
    if not ALLOWED.exists() or "[never]" in ALLOWED.read_text():
        pytest.skip("this system allows no transparent huge pages")
    *_, kilobytes = started(STARTED + TOUCHED)[1]
    assert int(kilobytes) > 32 << 10
