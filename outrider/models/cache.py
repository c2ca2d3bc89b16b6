"""Folders that are made once on a machine, and are complete if they exist."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from filelock import FileLock, Timeout

from outrider.errors import ConfigurationError

Progress = Callable[[str], None]


def silent(what: str) -> None:
    """Progress that is not shown."""


def cache_folder() -> Path:
    """$OUTRIDER_CACHE, else `outrider` in $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("OUTRIDER_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "outrider"


def made_once(folder: Path, make: Callable[[Path], None], what: str, progress: Progress) -> Path:
    """Returns `folder`; `make` fills it first if it does not exist.

    Safe to call from several processes at once: one makes it, the others wait.
    `progress` is called with the name of what takes time, such as `what`.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    if folder.is_dir():
        return folder
    try:
        with _locked(_beside(folder, "lock"), folder.name, progress):
            if not folder.is_dir():
                progress(what)
                _make_atomically(folder, make)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write models to {folder.parent}: {error.strerror or error}; "
            "they need room there, 1 GB for the embedded ones, or in the folder that "
            "OUTRIDER_CACHE names"
        ) from error
    return folder


def _make_atomically(folder: Path, make: Callable[[Path], None]) -> None:
    """Fills a temporary folder and renames it, so that `folder` is complete if it exists."""
    # One name suffices under the lock, and the remains of a killed process are removed.
    partial = _beside(folder, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        make(partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _beside(folder: Path, suffix: str) -> Path:
    # with_suffix would cut the version in the name, which has dots.
    return folder.with_name(f"{folder.name}.{suffix}")


def _locked(path: Path, name: str, progress: Progress) -> AbstractContextManager[object]:
    """The lock at `path`, which is held already, and released behind the `with`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        progress(f"{name}: waiting for another process that makes it")
        return lock.acquire()
