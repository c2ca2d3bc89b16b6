"""The container files and the Makefile say what the services understand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from outrider.settings.options import DEFAULT_DRAIN_SECONDS, settings_group

ROOT = Path(__file__).parents[2]
SERVICES = ["target", "draft", "orchestrator"]
SERVICE_PACKAGES = ("draft_service", "target_service", "orchestrator")
MEMORY = {"target": "8g", "draft": "4g", "orchestrator": "4g"}
FILES = ["docker-compose.yml", "docker-compose.gpu.yml", "docker-compose.watch.yml"]


def compose(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return loaded


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = compose("docker-compose.yml")["services"][name]
    return found


def command_of(name: str) -> click.Command:
    """The click command behind a service's `command`."""
    python, flag, module = service(name)["command"]
    assert (python, flag) == ("python", "-m")
    command = import_module(f"{module}.__main__").main
    assert isinstance(command, click.Command)
    return command


def default_port(name: str) -> int:
    ports = [option.default for option in command_of(name).params if option.name == "port"]
    assert isinstance(ports[0], int)
    return ports[0]


def environment(file: str, name: str) -> dict[str, str]:
    """A service's own variables, with the defaults of `${NAME:-default}`.

    One that is handed through has no value in the file; here it is "3", which
    nearly every such flag takes.
    """
    variables = compose(file)["services"][name].get("environment", {})
    return {
        key: re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", "3" if value is None else str(value))
        for key, value in variables.items()
        if key.startswith("OUTRIDER_")
    }


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("file", FILES)
def test_environment_sets_flags(
    file: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    command = command_of(name)
    variables = environment(file, name)
    choices = {
        "DTYPE": "bfloat16",
        "GRAPHS": "False",
        "ADAPT_THREADS": "False",
        "TRUST_REMOTE_CODE": "True",
        "MIN_CONFIDENCE": "0.3",
        "MAX_QUEUE_SECONDS": "0.5",
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "error",
        "DRAIN_SECONDS": "3.0",
        "IDLE_SECONDS": "3.0",
    }
    for flag, value in choices.items():
        if (key := f"OUTRIDER_{name.upper()}_{flag}") in variables:
            variables[key] = value
    for key, value in variables.items():
        monkeypatch.setenv(key, value)

    with (
        settings_group().make_context("outrider", [name]) as group,
        command.make_context(command.name, [], parent=group) as context,
    ):
        for key, value in variables.items():
            flag = key.removeprefix(f"OUTRIDER_{name.upper()}_").lower()
            assert str(context.params[flag]) == value
            assert context.get_parameter_source(flag) is click.core.ParameterSource.ENVIRONMENT


@pytest.mark.parametrize("name", SERVICES)
def test_every_flag_of_a_service_can_be_set(name: str) -> None:
    flags = {f"OUTRIDER_{name.upper()}_{option.name}".upper() for option in command_of(name).params}
    others = {
        f"OUTRIDER_{name.upper()}_PORT",  # is fixed: health checks and addresses name it
        "OUTRIDER_TARGET_TENSOR_PARALLEL",  # is for torchrun's processes
    }
    assert set(environment("docker-compose.yml", name)) == flags - others


@pytest.mark.parametrize("name", SERVICES)
def test_health_check_asks_the_port_that_the_service_listens_on(name: str) -> None:
    *start, address = service(name)["healthcheck"]["test"]
    assert start == ["CMD", "python", "-m", "outrider.healthcheck"]
    assert address == f"127.0.0.1:{default_port(name)}"


def test_the_orchestrator_finds_the_pair_and_waits_for_the_target() -> None:
    orchestrator = service("orchestrator")
    conditions = {"target": "service_healthy", "draft": "service_started"}
    for name, condition in conditions.items():
        address = orchestrator["environment"][f"OUTRIDER_ORCHESTRATOR_{name.upper()}"]
        assert address == f"{name}:{default_port(name)}"
        assert orchestrator["depends_on"][name] == {"condition": condition}
        assert service(name)["environment"][f"OUTRIDER_{name.upper()}_HOST"] == "0.0.0.0"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_drain_comes_back_and_has_limits(name: str) -> None:
    definition = service(name)
    grace = re.fullmatch(r"(\d+)s", definition["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) > DEFAULT_DRAIN_SECONDS + 5
    assert definition["restart"] == "unless-stopped"
    assert definition["mem_limit"] == f"${{{name.upper()}_MEMORY:-{MEMORY[name]}}}"
    assert definition["pids_limit"] > 0


def test_only_the_orchestrator_is_published() -> None:
    port = default_port("orchestrator")
    assert {name: service(name).get("ports") for name in SERVICES} == {
        "orchestrator": [f"127.0.0.1:{port}:{port}"],
        "draft": None,
        "target": None,
    }


def test_the_pair_shares_the_cache() -> None:
    assert "OUTRIDER_CACHE=/cache" in (ROOT / "Dockerfile").read_text()
    assert "cache" in compose("docker-compose.yml")["volumes"]
    for name in ("target", "draft"):
        assert service(name)["volumes"] == ["cache:/cache"]


def test_the_gpu_file_gives_the_pair_a_gpu_each() -> None:
    services = compose("docker-compose.gpu.yml")["services"]
    assert set(services) == set(SERVICES)
    gpus = [
        services[name]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
        for name in ("target", "draft")
    ]
    assert gpus == [["${TARGET_GPU:-0}"], ["${DRAFT_GPU:-1}"]]
    assert {definition["image"] for definition in services.values()} == {"outrider:cuda"}


def test_prometheus_reads_where_the_services_serve_metrics() -> None:
    settings = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    read = {
        job["job_name"]: job["static_configs"][0]["targets"] for job in settings["scrape_configs"]
    }
    services = compose("docker-compose.watch.yml")["services"]
    ports = {
        name: services[name]["environment"][f"OUTRIDER_{name.upper()}_METRICS_PORT"]
        for name in SERVICES
    }
    assert read == {name: [f"{name}:{port}"] for name, port in ports.items()}


def test_what_is_mounted_exists() -> None:
    services = compose("docker-compose.watch.yml")["services"]
    mounts = [*services["prometheus"]["volumes"], *services["grafana"]["volumes"]]
    for mount in mounts:
        assert (ROOT / mount.split(":")[0]).exists(), mount
    [provider] = yaml.safe_load(
        (ROOT / "deploy/grafana/provisioning/dashboards/outrider.yml").read_text()
    )["providers"]
    folder = provider["options"]["path"]
    assert any(mount.split(":")[1].startswith(folder + "/") for mount in mounts)


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {
        ".".join(path.relative_to(ROOT).parts[:-1])
        for package in ("outrider", "outrider_bench", *SERVICE_PACKAGES)
        for path in (ROOT / package).rglob("__init__.py")
    }
    patterns = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    found = {name for name in folders if any(fnmatch(name, pattern) for pattern in patterns)}
    assert found == folders


def test_the_image_holds_every_package_and_an_unprivileged_user() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{package}" for package in ("outrider", "outrider_bench", *SERVICE_PACKAGES)} <= set(
        copied
    )
    for name in ("pyproject.toml", "constraints.txt", settings["project"]["readme"], "LICENSE"):
        assert f"!{name}" in copied
    user = re.search(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert int(user[1]) != 0


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile in a folder that looks installed; its `outrider` prints its arguments."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    outrider = tmp_path / ".venv/bin/outrider"
    outrider.parent.mkdir(parents=True)
    outrider.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    outrider.chmod(0o755)
    (tmp_path / ".venv/.installed").touch()
    return tmp_path


def make(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # Not as a part of the `make test` that may run this test.
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PROMPT")
    surroundings = {key: value for key, value in os.environ.items() if key not in outer}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=surroundings, capture_output=True, text=True
    )


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.mark.process
@needs_make
@pytest.mark.parametrize("prompt", ['It\'s "quoted"', "$5 $(shell false) `false` #1", "-5 % 3"])
def test_make_run_takes_any_prompt(prompt: str, project: Path) -> None:
    finished = make("run", f"PROMPT={prompt}", folder=project)
    assert finished.stdout.splitlines() == ["generate", "--compare", "--", prompt]


@pytest.mark.process
@needs_make
def test_make_installs_once(project: Path) -> None:
    assert "up to date" in make(".venv/.installed", folder=project).stdout


@pytest.mark.process
@needs_make
def test_make_refuses_an_old_python(project: Path) -> None:
    (project / ".venv/.installed").unlink()
    old = project / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    finished = make("run", f"PYTHON={old}", folder=project)
    assert finished.returncode != 0
    assert "needs Python 3.11" in finished.stderr
