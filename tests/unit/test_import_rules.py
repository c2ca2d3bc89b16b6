"""Who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = {"draft_service", "target_service", "orchestrator"}
GENERATED = ROOT / "outrider/v1"
MAX_LINES = 300

# The edge: where protobuf messages become dataclasses, and where servers are put together.
PROTOBUF_MODULES = {
    "__main__",
    "channel",
    "client",
    "client_request",
    "client_stream",
    "clients",
    "codec",
    "generation_codec",
    "healthcheck",
    "model_service",
    "server",
    "service",
    "servicer",
    "draft_session",
    "target_session",
}

# Processes that must start fast and stay small.
WITHOUT_TORCH = [
    "draft_service.__main__",
    "orchestrator.__main__",
    "target_service.__main__",
    "outrider",
    "outrider.channel",
    "outrider.cli",
    "outrider.client",
    "outrider.codec",
    "outrider.config",
    "outrider.distill.__main__",
    "outrider.errors",
    "outrider.healthcheck",
    "outrider.messages",
    "outrider.processes",
    "outrider.report",
    "outrider_bench.__main__",
]


def sources(*folders: str) -> list[Path]:
    """Our own Python files, without generated ones."""
    return [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.is_relative_to(GENERATED)
    ]


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, at whatever depth: modules and names in them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_level_imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("package", sorted(SERVICES | {"outrider"}))
def test_services_are_imported_by_nobody_else(package: str) -> None:
    for path in sources(package):
        assert not top_level_imports(path) & (SERVICES - {package}), path


def test_nothing_that_is_served_imports_measurements() -> None:
    for path in sources("outrider", *SERVICES):
        assert not top_level_imports(path) & {"outrider_bench", "benchmarks", "matplotlib"}, path


def test_protobuf_stops_at_the_edge() -> None:
    for path in sources("outrider", *SERVICES):
        if path.stem not in PROTOBUF_MODULES:
            assert not [name for name in imports(path) if name.startswith("outrider.v1")], path


def test_the_engine_knows_no_grpc() -> None:
    for path in sources("outrider/engine"):
        assert not top_level_imports(path) & {"grpc", "google"}, path


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_no_torch(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "print(*sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    allowed = {"tokenizers"} if module == "orchestrator.__main__" else set()
    assert set(finished.stdout.split()) <= allowed


@pytest.mark.parametrize(
    "module", ["draft_service.service", "target_service.service", "orchestrator.__main__"]
)
def test_what_watches_is_not_imported_unless_asked_for(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "print(*sorted({'opentelemetry', 'prometheus_client'} & set(sys.modules)))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert finished.stdout.split() == []


@pytest.mark.parametrize(
    "package", sorted(SERVICES | {"outrider", "tests", "benchmarks", "outrider_bench"})
)
def test_files_are_short(package: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources(package)}
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}
