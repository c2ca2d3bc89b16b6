from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click
import pytest

from outrider.cli.main import cli
from outrider.settings.options import (
    DRAFT_DTYPES,
    ServerOptions,
    model_options,
    run_group,
    server_options,
    settings_group,
)
from outrider.settings.types import WHOLE_TEXT, FiniteRange


@pytest.fixture
def seen() -> dict[str, Any]:
    return {}


@pytest.fixture
def group(seen: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> click.Group:
    """A group with one service command that notes its settings; runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OUTRIDER_CONFIG", raising=False)
    group = settings_group()

    @group.command("generate")
    @click.option("--stop", type=WHOLE_TEXT, multiple=True)
    @click.option("--seconds", type=FiniteRange(min=0), default=1.0)
    def generate(**settings: Any) -> None:
        seen.update(settings)

    @group.command("draft")
    @server_options(50052)
    @model_options(DRAFT_DTYPES)
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
        "cached_tokens": None,
        "graphs": True,
        "adapt_threads": True,
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
        ("draft = 1", "'draft' is a section: [draft]"),
        ("[draft]\nmax-context-length = 1\nmax_context_length = 2\n", "stands twice"),
        ("[draft]\nslots = {a = 1}\n", "'slots' in section 'draft' must be a text, a number"),
        ("[draft]\nslots = [1]\n", "must be a text, a number"),
        ('[draft]\nmodel = ["a"]\n', "'model' in section 'draft' must be a text, a number"),
        ("[generate]\nstop = [[1]]\n", "must be a text, a number"),
        ("[[draft]]\nslots = 1\n", "'draft' is a section: [draft]"),
        ("[draft]\nslots = 2026-01-01\n", "must be a text, a number"),
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


@pytest.mark.parametrize(
    ("flag", "value", "allowed"), [("--slots", "0", "x>=1"), ("--threads", "1025", "1<=x<=1024")]
)
def test_a_bad_value_is_a_usage_error(
    flag: str, value: str, allowed: str, group: click.Group, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(group, "draft", flag, value) == 2
    assert f"'{flag}': {value} is not in the range {allowed}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("slots = true", "'slots' in [draft] of outrider.toml: 'True' is not a valid integer"),
        ("slots = 2.7", "'slots' in [draft] of outrider.toml: '2.7' is not"),
        ("graphs = 5", "'graphs' in [draft] of outrider.toml: '5' is not a valid boolean"),
        ('host = "http://here"', "'host' in [draft] of outrider.toml: 'http://here' is not a host"),
    ],
)
def test_a_bad_value_in_a_file_is_named_with_its_place(
    line: str, message: str, group: click.Group, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("outrider.toml").write_text(f"[draft]\n{line}\n")
    assert run(group, "draft") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", ["false", '"no"', '"0"'])
def test_flags_in_a_file(value: str, group: click.Group, seen: dict[str, Any]) -> None:
    Path("outrider.toml").write_text(f"[draft]\ngraphs = {value}\n")
    assert run(group, "draft") == 0
    assert seen["graphs"] is False


def test_an_error_in_a_variable_names_it(
    group: click.Group, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTRIDER_DRAFT_SLOTS", "two")
    assert run(group, "draft") == 2
    assert "OUTRIDER_DRAFT_SLOTS: 'two' is not a valid integer" in capsys.readouterr().err
    monkeypatch.setenv("OUTRIDER_CONFIG", "nowhere.toml")
    assert run(group, "draft") == 2
    assert "OUTRIDER_CONFIG: File 'nowhere.toml' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("OUTRIDER_DRAFT_SLOT", "; did you mean OUTRIDER_DRAFT_SLOTS?"),
        ("OUTRIDER_SLOTS", ""),
        ("OUTRIDER_CACHE_DIR", "; did you mean OUTRIDER_CACHE?"),
        ("OUTRIDER_DRAFTER_SLOTS", "; did you mean OUTRIDER_DRAFT_SLOTS?"),
        ("OUTRIDER_DRAFT", ""),
        ("OUTRIDER_VERSION", ""),
        ("OUTRIDER_DRAFT_HELP", ""),
        ("OUTRIDER_PORT", ""),
        ("OUTRIDER_TARGET", ""),  # OUTRIDER_ORCHESTRATOR_TARGET is meant
    ],
)
def test_an_unknown_variable_is_an_error(
    name: str,
    hint: str,
    group: click.Group,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, "1")
    assert run(group, "draft") == 1
    error = capsys.readouterr().err
    assert f"error: unknown environment variable {name}" in error
    assert hint in error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OUTRIDER_TARGET_SLOTZ", "1"),  # the target's to refuse
        ("OUTRIDER_CACHE", "/tmp"),
        ("OUTRIDER_DRAFT_SLOTS", ""),
        ("OUTRIDER_SERVICE_HOST", "10.0.0.1"),  # these are Kubernetes'
        ("OUTRIDER_SERVICE_PORT_GRPC", "50051"),
        ("OUTRIDER_PORT", "tcp://10.0.0.1:50051"),
        ("OUTRIDER_DRAFT_PORT_50052_TCP_ADDR", "10.0.0.1"),
        ("OUTRIDER_DRAFT_PORT", "tcp://10.0.0.1:50052"),  # named as a setting of ours is
    ],
)
def test_what_others_know_is_left_to_them(
    name: str, value: str, group: click.Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert run(group, "draft") == 0


@pytest.mark.parametrize(("host", "bare"), [("::", "::"), ("[::1]", "::1"), ("0.0.0.0", "0.0.0.0")])
def test_hosts(host: str, bare: str, group: click.Group, seen: dict[str, Any]) -> None:
    assert run(group, "draft", "--host", host) == 0
    assert seen["server"].host == bare


def test_a_host_with_a_port_is_refused(
    group: click.Group, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(group, "draft", "--host", "localhost:50051") == 2
    assert "is not a host" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_no_number_is_in_no_range(
    value: str, group: click.Group, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(group, "generate", "--seconds", value) == 2
    assert "--seconds" in capsys.readouterr().err


def test_a_text_in_a_variable_is_one_text(
    group: click.Group, seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_GENERATE_STOP", "\n\nThe end. ")
    assert run(group, "generate") == 0
    assert seen["stop"] == ("\n\nThe end. ",)


@pytest.mark.parametrize(
    ("value", "stops"),
    [('"one text"', ("one text",)), ('["one", "two"]', ("one", "two")), ("[1]", ("1",))],
)
def test_one_or_several_texts_in_a_file(
    value: str, stops: tuple[str, ...], group: click.Group, seen: dict[str, Any]
) -> None:
    Path("outrider.toml").write_text(f"[generate]\nstop = {value}\n")
    assert run(group, "generate") == 0
    assert seen["stop"] == stops


def test_a_file_of_an_editor_that_marks_utf8(group: click.Group, seen: dict[str, Any]) -> None:
    Path("outrider.toml").write_text("[draft]\nslots = 5\n", encoding="utf-8-sig")
    assert run(group, "draft") == 0
    assert seen["slots"] == 5


@pytest.mark.parametrize(
    "module",
    ["draft_service.__main__", "target_service.__main__", "orchestrator.__main__"],
)
def test_a_setting_has_its_flags_name(module: str) -> None:
    """So that variables and files can be written by what --help says."""
    commands = [*cli.commands.values(), importlib.import_module(module).main]
    options = [
        one for command in commands for one in command.params if isinstance(one, click.Option)
    ]
    for option in options:
        assert f"--{str(option.name).replace('_', '-')}" in option.opts


@pytest.mark.parametrize("name", ["", " "])
def test_a_model_has_a_name(
    name: str, group: click.Group, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(group, "draft", "--model", name) == 2
    assert "'--model': a model has a name" in capsys.readouterr().err
