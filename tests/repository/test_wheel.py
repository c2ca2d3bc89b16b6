"""The wheel holds what it should, and works in an empty folder, without the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

import outrider

ROOT = Path(__file__).parents[2]
PACKAGES = ("outrider", "outrider_bench", "draft_service", "target_service", "orchestrator")
DATA = {
    "outrider/py.typed",
    "outrider/cli/pages/page.html",
    "outrider/embedded/README.md",
    "outrider/embedded/draft.safetensors",
    "outrider_bench/prompts.txt",
    *(f"outrider/v1/{name}_pb2.pyi" for name in ("common", "draft", "generation", "target")),
}

pytestmark = pytest.mark.process


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy: setuptools writes into the folder that it builds from."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in (*PACKAGES, "benchmarks", "tests"):
        shutil.copytree(
            ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", built, source)
    [path] = built.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents alone."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", folder, wheel)
    return folder


def run(*command: str, installed: Path, folder: Path) -> str:
    """Standard output of a command that finds the installed packages first."""
    surroundings = {**os.environ, "PYTHONPATH": str(installed)}
    finished = subprocess.run(
        command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"outrider-{outrider.__version__}-py3-none-any.whl"
    modules = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == modules | DATA


def test_the_command_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    script = str(installed / "bin/outrider")
    shown = run(script, "--version", installed=installed, folder=tmp_path)
    assert shown == f"outrider, version {outrider.__version__}\n"
    for command in ("draft", "target", "orchestrator", "distill", "bench"):
        assert "--help" in run(script, command, "--help", installed=installed, folder=tmp_path)


@pytest.mark.parametrize("needs_command", [False, True], ids=["library", "command"])
def test_clients_need_only_the_packages_that_the_docs_name(
    needs_command: bool, installed: Path, tmp_path: Path
) -> None:
    """Of the packages that Outrider requires, the others are hidden: torch among them."""
    page = (ROOT / "docs/getting-started.md").read_text()
    library, command = re.findall(
        r"^    pip install -c constraints.txt ((?:[\w-]+ ?)+)$", page, re.MULTILINE
    )
    named = set(f"{library} {command}".split() if needs_command else library.split())
    required = {
        re.split(r"[^\w-]", line)[0] for line in requires("outrider") or [] if ";" not in line
    }
    assert {"torch", "transformers", "numpy"} <= required - named
    hidden = [
        module
        for module, distributions in packages_distributions().items()
        if {name.lower() for name in distributions} & (required - named)
    ]
    program = [
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))",
        "import outrider",
        f"from outrider import {', '.join(outrider.__all__)}",
        "from outrider.cli.main import cli" if needs_command else "",
        "try:",
        "    Client('127.0.0.1:1').info(timeout=5)",
        "except OutriderError as error:",
        "    print(outrider.__file__, error.reason)",
    ]
    shown = run(sys.executable, "-c", "\n".join(program), installed=installed, folder=tmp_path)
    assert shown.split() == [str(installed / "outrider/__init__.py"), "SERVICE_UNAVAILABLE"]
