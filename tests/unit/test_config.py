from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from outrider.config import (
    ServerOptions,
    model_options,
    run_group,
    server_options,
    settings_group,
)


@pytest.fixture
def seen() -> dict[str, Any]:
    return {}


@pytest.fixture
def group(seen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> click.Group:
    """A group with one service command that notes its settings; runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OUTRIDER_CONFIG", raising=False)
    group = settings_group()

    @group.command("draft")
    @server_options(50052)
    @model_options
    def draft(server: ServerOptions, **settings: Any) -> None:
        seen.update(settings, server=server)

    return group


def run(group: click.Group, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        run_group(group, arguments)
    return int(caught.value.code or 0)


def test_defaults(group: click.Group, seen: dict[str, Any]) -> None:
    assert run(group, "draft") == 0
    assert seen == {
        "server": ServerOptions(port=50052),
        "model": "default",
        "device": "auto",
        "dtype": "auto",
        "threads": None,
        "slots": None,
        "max_context_length": None,
        "graphs": True,
        "trust_remote_code": False,
    }


def test_a_flag_beats_the_environment_which_beats_the_file(
    group: click.Group, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("outrider.toml").write_text(
        '[draft]\nslots = 1\nport = 1\nmodel = "file"\nmax-context-length = 99\n'
    )
    monkeypatch.setenv("OUTRIDER_DRAFT_SLOTS", "2")
    monkeypatch.setenv("OUTRIDER_DRAFT_PORT", "2")
    assert run(group, "draft", "--slots", "3") == 0
    assert (seen["slots"], seen["server"].port, seen["model"]) == (3, 2, "file")
    assert seen["max_context_length"] == 99


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_the_file_can_be_named(
    by: str, group: click.Group, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("other.toml").write_text("[draft]\nslots = 7\n")
    if by == "environment":
        monkeypatch.setenv("OUTRIDER_CONFIG", "other.toml")
        run(group, "draft")
    else:
        run(group, "--config", "other.toml", "draft")
    assert seen["slots"] == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[drafft]\nslots = 1\n", "unknown section 'drafft'"),
        ("[draft]\nslot = 1\n", "unknown key 'slot' in section 'draft'"),
        ("slots = ", "outrider.toml"),
        ("slots = 1", "unknown section 'slots'"),
    ],
)
def test_what_means_nothing_in_a_file_is_an_error(
    text: str, message: str, group: click.Group, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("outrider.toml").write_text(text)
    assert run(group, "draft") == 1
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_utf8_is_an_error(
    group: click.Group, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("outrider.toml").write_bytes(b"[draft]\nmodel = '\xff'\n")
    assert run(group, "draft") == 1
    assert "outrider.toml" in capsys.readouterr().err


def test_a_bad_value_is_a_usage_error(
    group: click.Group, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(group, "draft", "--slots", "0") == 2
    assert "--slots" in capsys.readouterr().err
