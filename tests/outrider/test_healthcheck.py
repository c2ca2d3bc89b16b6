"""`python -m outrider.healthcheck`, by hand and in the image."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from outrider.healthcheck import main

ROOT = Path(__file__).parents[2]
SERVICES = ["target", "draft", "orchestrator"]


@pytest.fixture
def health_service() -> Iterator[tuple[str, health.HealthServicer]]:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


def healthcheck(*arguments: str, **variables: str) -> tuple[int, str]:
    # With a proxy that isn't there, as in a container of a company's network.
    surroundings = {**os.environ, "http_proxy": "http://127.0.0.1:9", **variables}
    finished = subprocess.run(
        [sys.executable, "-m", "outrider.healthcheck", *arguments, "--timeout", "20"],
        capture_output=True,
        text=True,
        env=surroundings,
    )
    return finished.returncode, finished.stdout.strip()


@pytest.mark.process
def test_healthcheck_tells_by_its_exit_status(
    health_service: tuple[str, health.HealthServicer],
) -> None:
    address, servicer = health_service
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert healthcheck(address) == (1, "NOT_SERVING")
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    assert healthcheck(address) == (0, "SERVING")


@pytest.mark.process
def test_the_images_check_finds_the_service_in_any_role(
    health_service: tuple[str, health.HealthServicer],
) -> None:
    [line] = re.findall(r"HEALTHCHECK.*\\\n +CMD (.*)", (ROOT / "Dockerfile").read_text())
    assert json.loads(line) == ["python", "-m", "outrider.healthcheck"]
    nobody = dict.fromkeys([f"OUTRIDER_{name.upper()}_PORT" for name in SERVICES], "1")
    assert healthcheck(**nobody) == (1, "UNAVAILABLE")
    port = health_service[0].rpartition(":")[2]
    for name in nobody:
        assert healthcheck(**{**nobody, name: port}) == (0, "SERVING")


@pytest.mark.process
def test_healthcheck_of_a_service_that_is_not_there() -> None:
    assert healthcheck("127.0.0.1:1") == (1, "UNAVAILABLE")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Invalid value: OUTRIDER_TARGET_PORT: 'fifty' is not a port from 1 to 65535"),
        (["localhost"], "Invalid value for ADDRESS: address 'localhost' names no port"),
    ],
)
def test_what_cannot_be_asked_is_named(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTRIDER_ORCHESTRATOR_PORT", "1")
    monkeypatch.setenv("OUTRIDER_DRAFT_PORT", "1")
    monkeypatch.setenv("OUTRIDER_TARGET_PORT", "fifty")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert message in result.output
