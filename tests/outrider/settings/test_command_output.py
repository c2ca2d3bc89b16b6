"""What commands write where it cannot be written as it is."""

from __future__ import annotations

import io
import sys

import click
import pytest

from outrider.settings.options import run_group


def shown_by(group: click.Group) -> int:
    with pytest.raises(SystemExit) as caught:
        run_group(group, ["show"])
    return int(caught.value.code or 0)


def test_a_full_disk_is_an_error_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    group = click.Group()

    @group.command()
    def show() -> None:
        with open("/dev/full", "w") as full:
            full.write("a model")

    assert shown_by(group) == 1
    assert capsys.readouterr().err == "error: cannot write: No space left on device\n"


def test_a_client_without_torch_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    group = click.Group()

    @group.command()
    def show() -> None:
        import torch  # noqa: F401

    assert shown_by(group) == 1
    assert capsys.readouterr().err == (
        "error: torch is not installed; only clients do without it\n"
    )


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is not cut off at its first letter with an accent."""
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    group = click.Group()

    @group.command()
    def show() -> None:
        print("na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve", flush=True)

    assert shown_by(group) == 0
    assert written.getvalue() == b"na\\xefve\n"
