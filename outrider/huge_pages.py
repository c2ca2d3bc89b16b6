"""Huge pages for the weights of models.

A pass reads all weights. In pages of 4 kB, looking up where they lie takes up to a sixth of its
time; in huge pages of 2 MB, hardly any.
"""

import os
import sys

HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
"""The variable and value by which glibc, from 2.35 on, asks the system for transparent huge pages.

It heeds them when a process begins, and the system unless it was told never to use such pages.
"""


def start_with_huge_pages() -> None:
    """Starts this program again in the same process, with `HUGE_PAGES`, unless these are set.

    Linux only. Call it before anything else.
    """
    name, value = HUGE_PAGES
    if sys.platform == "linux" and name not in os.environ:
        os.environ[name] = value
        os.execv(sys.executable, sys.orig_argv)
