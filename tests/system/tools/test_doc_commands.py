"""The commands and the Python programs in the docs run as they are shown.

With tiny models, on any free ports, and in a folder that has what the docs name. Commands that are
not run are listed in tests/support/doc_commands.py.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outrider.protocol.address import dialable
from tests.outrider.cli.pages.test_request import REQUEST
from tests.support.doc_commands import ROOT, RUN, Command, shown_programs

pytestmark = pytest.mark.process

SERVICES = ("up", "draft", "target", "orchestrator")


def is_service(command: Command) -> bool:
    return command.arguments[0] == "outrider" and command.arguments[1] in SERVICES


@pytest.fixture(scope="module")
def environment(tiny_models: Callable[..., Path]) -> dict[str, str]:
    """Free ports instead of the usual ones, and tiny models instead of the default pair."""
    target, draft = str(tiny_models("llama")), str(tiny_models("llama", seed=1))
    ports = ("TARGET_PORT", "DRAFT_PORT", "ORCHESTRATOR_PORT", "UP_PORT")
    settings = {
        **dict.fromkeys((*ports, "UP_DRAFT_PORT", "UP_TARGET_PORT"), "0"),
        **dict.fromkeys(("TARGET_MODEL", "UP_TARGET", "GENERATE_TARGET"), target),
        **dict.fromkeys(("DRAFT_MODEL", "UP_DRAFT", "GENERATE_DRAFT"), draft),
    }
    return {**os.environ, **{f"OUTRIDER_{name}": value for name, value in settings.items()}}


@pytest.fixture(scope="module")
def folder(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the names that the docs use for the reader's own files, and what a checkout has."""
    made = tmp_path_factory.mktemp("docs")
    (made / "answer.json").write_text(json.dumps(REQUEST))
    for name in ("benchmarks", "deploy", "protos"):
        (made / name).symlink_to(ROOT / name)
    for name, role in {"ID_OR_FOLDER": "TARGET", "my-draft": "DRAFT", "FOLDER": "DRAFT"}.items():
        (made / name).symlink_to(environment[f"OUTRIDER_{role}_MODEL"])
    return made


def words(command: Command, addresses: dict[str, str]) -> list[str]:
    """What a shell would start, with this environment's programs and these addresses."""
    replaced = {"COMMAND": "generate", **addresses}
    program, *rest = (replaced.get(word, word) for word in command.arguments)
    globbed = [path for word in rest for path in sorted(glob.glob(word, root_dir=ROOT)) or [word]]
    own = Path(sys.executable).parent / program
    return [str(own) if own.exists() else program, *globbed]


@contextmanager
def serving(
    command: Command, folder: Path, environment: dict[str, str], addresses: dict[str, str]
) -> Iterator[str]:
    """Yields the address of a service, which then ends as asked, with status 0."""
    process = subprocess.Popen(
        words(command, addresses),
        cwd=folder,
        env=environment | command.variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = (line.partition(" ") for line in process.stdout)
        ready = next((rest.strip() for kind, _, rest in lines if kind == "ready"), None)
        assert ready is not None, f"{command.text} ended with status {process.wait()}"
        yield dialable(ready)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def two_hosts(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The commands of docs/several-hosts.md; addresses by the names that the docs have for them.

    As if hosts A and B were this one.
    """
    shown = {command.text: command for command in RUN}
    target, draft, orchestrator = (
        shown["outrider target"],
        shown["outrider draft --host 0.0.0.0"],
        shown["outrider orchestrator --host 0.0.0.0 --draft B:50052"],
    )
    with (
        serving(target, folder, environment, {}) as at,
        serving(draft, folder, environment, {}) as by,
    ):
        pair = {"A:50053": at, "B:50052": by}
        usual = environment | {"OUTRIDER_ORCHESTRATOR_TARGET": at}
        with serving(orchestrator, folder, usual, pair) as address:
            names = ("A:50051", "127.0.0.1:50051", "HOST:PORT")
            yield pair | dict.fromkeys(names, address)


@pytest.fixture(scope="module")
def surroundings(environment: dict[str, str], two_hosts: dict[str, str]) -> dict[str, str]:
    """The environment of commands that find services where these are by default."""
    return environment | {
        "OUTRIDER_ORCHESTRATOR_TARGET": two_hosts["A:50053"],
        "OUTRIDER_ORCHESTRATOR_DRAFT": two_hosts["B:50052"],
        "OUTRIDER_INFO_ADDRESS": two_hosts["A:50051"],
    }


@pytest.mark.parametrize("command", RUN, ids=lambda command: command.text)
def test_a_command_runs(
    command: Command, folder: Path, two_hosts: dict[str, str], surroundings: dict[str, str]
) -> None:
    if command.arguments[0] == "grpcurl" and shutil.which("grpcurl") is None:
        pytest.skip("grpcurl is not installed")
    if is_service(command):
        with serving(command, folder, surroundings, two_hosts):
            return
    finished = subprocess.run(
        words(command, two_hosts),
        cwd=folder,
        env=surroundings | command.variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("place", shown_programs())
def test_a_program_runs(place: str, two_hosts: dict[str, str], tmp_path: Path) -> None:
    program = shown_programs()[place].replace("127.0.0.1:50051", two_hosts["A:50051"])
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
