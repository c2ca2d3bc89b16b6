"""What the docs show and tests do not run is valid: commands are parsed, files of settings read.

tests/system/tools/test_doc_commands.py runs all other commands.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from outrider.cli.main import cli
from outrider.settings.options import settings_group
from outrider.settings.sources import check_variables
from tests.support.doc_commands import NOT_RUN, PAGES, PARSED, ROOT, Command

MAINS = {
    "draft": "draft_service.__main__",
    "target": "target_service.__main__",
    "orchestrator": "orchestrator.__main__",
    "distill": "outrider.distill.__main__",
    "bench": "outrider_bench.__main__",
}


def by_text(command: Command) -> str:
    return command.text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what the docs name: the reader's files, and those of a checkout."""
    for name in ("FILE", "first-prompts.txt", "second-prompts.txt"):
        (tmp_path / name).touch()
    for name in ("DIRECTORY", "first-draft", "second-draft"):
        (tmp_path / name).mkdir()
    for name in ("benchmarks", "deploy", "outrider", "outrider_bench", "protos", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parse_outrider(arguments: list[str]) -> None:
    name, *rest = arguments
    command = import_module(MAINS[name]).main if name in MAINS else cli.commands[name]
    with (
        settings_group().make_context("outrider", [name]) as group,
        suppress(click.MissingParameter),  # prose names a command by some of its flags
    ):
        command.make_context(name, rest, parent=group).close()


def parse_torchrun(arguments: list[str]) -> None:
    module = arguments.index("-m")
    assert arguments[module + 1] == "target_service"
    parse_outrider(["target", *arguments[module + 2 :]])


class Parsed(Exception):
    """Instead of what follows."""


def parse_python(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    flag, what, *rest = arguments
    if flag == "-c":
        compile(what, "<docs>", "exec")
        return
    assert flag == "-m"
    assert find_spec(what)
    if rest:
        parse_args = argparse.ArgumentParser.parse_args

        def stop(parser: argparse.ArgumentParser, *_: object) -> None:
            parse_args(parser, rest)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed):
            import_module(what).main()


def parse_pip(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    for extra in re.findall(r"\.\[(\w.*)\]", arguments[-1]):
        assert extra in project["optional-dependencies"]
    assert all(one in pins for one in arguments if "==" in one)


def parse_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        variable, equals, _ = argument.partition("=")
        assert re.search(
            rf"^{variable} \?=" if equals else rf"^{argument}:", makefile, re.MULTILINE
        )


def parse_docker(arguments: list[str]) -> None:
    files = [ROOT / arguments[i + 1] for i, word in enumerate(arguments) if word == "-f"]
    assert all(file.exists() for file in files)
    if not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        flags = [part for file in files for part in ("-f", str(file))]
        subprocess.run(["docker", "compose", *flags, "config", "-q"], cwd=ROOT, check=True)


@pytest.mark.parametrize("how", NOT_RUN)
def test_what_is_not_run_is_in_the_docs(how: str) -> None:
    assert any(re.match(how, command.text) for command in PARSED)


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] * ("benchmarks." in command.text))
        for command in PARSED
    ],
    ids=by_text,
)
def test_what_is_not_run_is_parsed(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FOLDER", "my-draft"):
        (folder / name).mkdir()
    program, *arguments = command.arguments
    check_variables(command.variables, cli)
    parsers: dict[str, Callable[[list[str]], None]] = {
        "outrider": parse_outrider,
        "torchrun": parse_torchrun,
        "python": lambda arguments: parse_python(arguments, monkeypatch),
        "pip": parse_pip,
        "make": parse_make,
        "docker": parse_docker if shutil.which("docker") else lambda arguments: None,
    }
    parsers.get(program, lambda arguments: None)(arguments)


def test_named_flags_exist() -> None:
    commands = [cli, *cli.commands.values(), *(import_module(name).main for name in MAINS.values())]
    parameters = [parameter for command in commands for parameter in command.params]
    flags = {flag for each in parameters for flag in (*each.opts, *each.secondary_opts)}
    spans = [span for page in PAGES for span in re.findall(r"`(--[^`]*)`", page.read_text())]
    named = {flag for span in spans for flag in re.findall(r"(?<!\S)--[\w-]+", span)}
    of_others = {"--no-deps", "--extra-index-url", "--format", "--parts"}  # pip, ghz, benchmarks
    assert named - of_others <= flags | {"--help"}


def test_named_subcommands_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"`outrider (\w+)`", text)) <= cli.commands.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_settings_are_valid(page: Path, tmp_path: Path) -> None:
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
        (tmp_path / "outrider.toml").write_text(block)
        for name, settings in tomllib.loads(block).items():
            command = import_module(MAINS[name]).main if name in MAINS else cli.commands[name]
            file = ["--config", str(tmp_path / "outrider.toml"), name]
            group = settings_group().make_context("outrider", file)
            assert command.make_context(name, [], parent=group).params.items() >= settings.items()
