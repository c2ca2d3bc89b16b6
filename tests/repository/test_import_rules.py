"""Which rooms there are, who may import whom, and how much a room and a file may hold.

A *room* is a package. Arrows between rooms, and to the files that lie beside rooms, go one way.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = {"draft_service", "target_service", "orchestrator"}
PACKAGES = sorted(SERVICES | {"outrider", "outrider_bench", "benchmarks"})
GENERATED = ROOT / "outrider/v1"
MAX_LINES = 300
MAX_FILES = 12

# In each list, what comes later may import what comes before, and not the other way round.
LAYERS = {
    "outrider": [
        "errors exits cores",
        "protocol",
        "observability settings models client sampling",
        "engine gguf",
        "embedded",
        "serving",
        "distill cli healthcheck",
    ],
    "outrider.engine": [
        "chunk device options shapes",
        "cache activity tensor_parallel",
        "attention",
        "soundness layers loading",
        "cpu cuda",
        "scheduling network",
        "self_check",
        "engine",
        "eagle3",
        "worker",
    ],
    "orchestrator": [
        "step",
        "policy reporting text forecast resizable_semaphore",
        "decoding admission request activity",
        "sessions",
        "generation",
        "codec metrics",
        "servicer",
        "service",
        "__main__",
    ],
    "outrider_bench": ["runs", "models", "baselines", "harness", "output", "__main__"],
}

# The edge: where protobuf messages become dataclasses, and where servers are put together.
PROTOBUF_MODULES = {
    "outrider.client.client",
    "outrider.client.request",
    "outrider.client.results",
    "outrider.client.stream",
    "outrider.healthcheck",
    "outrider.protocol.channel",
    "outrider.protocol.codec",
    "outrider.serving.model_service",
    "outrider.serving.server",
    "draft_service.service",
    "draft_service.servicer",
    "target_service.service",
    "target_service.servicer",
    "orchestrator.codec",
    "orchestrator.service",
    "orchestrator.servicer",
    "orchestrator.sessions.clients",
    "orchestrator.sessions.draft_session",
    "orchestrator.sessions.target_session",
}

# Processes that must start fast and stay small.
WITHOUT_TORCH = [
    "draft_service.__main__",
    "orchestrator.__main__",
    "target_service.__main__",
    "outrider.cli.main",
    "outrider.client",
    "outrider.distill.__main__",
    "outrider.embedded",
    "outrider.healthcheck",
    "outrider_bench.__main__",
    "outrider_bench.output.results_file",
]

TESTS_WITHOUT_TORCH = [
    *(f"tests/orchestrator/{room}" for room in ("policy", "reporting", "sessions", "text")),
    *(f"tests/outrider/{room}" for room in ("cli", "client", "observability", "protocol")),
    "tests/outrider/settings",
    "tests/repository",
]


def sources(*folders: str) -> list[Path]:
    """Our own Python files, without generated ones."""
    return [
        path
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.is_relative_to(GENERATED)
    ]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sources(*PACKAGES)}


def imports(path: Path, at_start_only: bool = False) -> Iterator[str]:
    """Full names of what a file imports, modules and names in them; not what only types need.

    Args:
        at_start_only: without what functions import when they are called.
    """
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if at_start_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        nodes.extend(ast.iter_child_nodes(node))


def module_of(name: str) -> str | None:
    """The module of ours that an imported name is, or is in."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def room_of(module: str) -> str:
    """The package that a module lies in, or itself where it lies beside packages."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    return module if package in LAYERS or package in PACKAGES else package


def arrows() -> Iterator[tuple[str, str]]:
    """From module to module."""
    for module, path in MODULES.items():
        for name in imports(path):
            imported = module_of(name)
            if imported is not None and imported != module:
                yield module, imported


def top_level_imports(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def test_arrows_between_rooms_go_one_way() -> None:
    graph: dict[str, set[str]] = {}
    for module, imported in arrows():
        if room_of(module) != room_of(imported):
            graph.setdefault(room_of(module), set()).add(room_of(imported))
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names them


@pytest.mark.parametrize("package", sorted(LAYERS))
def test_layers_import_what_lies_below(package: str) -> None:
    layers = {name: level for level, names in enumerate(LAYERS[package]) for name in names.split()}
    depth = package.count(".") + 1
    for module, imported in arrows():
        if module.startswith(f"{package}.") and imported.startswith(f"{package}."):
            above, below = module.split(".")[depth], imported.split(".")[depth]
            assert above == below or layers[below] < layers[above], f"{module} -> {imported}"


@pytest.mark.parametrize("package", sorted(SERVICES | {"outrider"}))
def test_services_are_imported_by_nobody_else(package: str) -> None:
    for path in sources(package):
        assert not top_level_imports(path) & (SERVICES - {package}), path


def test_services_are_no_clients() -> None:
    for module, imported in arrows():
        if module.split(".")[0] in SERVICES:
            assert not imported.startswith(("outrider.cli", "outrider.client")), module


def test_nothing_that_is_served_imports_measurements() -> None:
    for path in sources("outrider", *SERVICES):
        assert not top_level_imports(path) & {"outrider_bench", "benchmarks", "matplotlib"}, path


def test_protobuf_stops_at_the_edge() -> None:
    for module, path in MODULES.items():
        if module not in PROTOBUF_MODULES and module.split(".")[0] in SERVICES | {"outrider"}:
            assert not [name for name in imports(path) if name.startswith("outrider.v1")], path


def test_what_is_for_gpus_is_imported_for_gpus_only() -> None:
    for module, path in MODULES.items():
        if not module.startswith("outrider.engine.cuda"):
            names = [n for n in imports(path, at_start_only=True) if ".engine.cuda" in n]
            assert not names, path


def added_modules(names: set[str], *modules: str) -> list[set[str]]:
    """Which of `names` are there after each of the imports, one after another in a process."""
    program = f"import sys\nnames = {names!r}\n" + "".join(
        f"import {module}\nprint(*names & set(sys.modules))\n" for module in modules
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return [set(line.split()) for line in finished.stdout.splitlines()]


@pytest.mark.process
def test_the_engine_knows_no_grpc_and_what_watches_is_imported_when_asked_for() -> None:
    services = ("draft_service.service", "target_service.service", "orchestrator.service")
    serving, watching = {"grpc", "google.protobuf"}, {"opentelemetry", "prometheus_client"}
    found = added_modules(serving | watching, "outrider.engine.engine", *services)
    assert found == [set(), serving, serving, serving]


@pytest.mark.process
@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_imports_no_torch(module: str) -> None:
    allowed = {"tokenizers"} if module == "orchestrator.__main__" else set()
    [found] = added_modules({"torch", "transformers", "tokenizers"}, module)
    assert found <= allowed


@pytest.mark.process
def test_services_import_grpc_and_torch_once_their_variables_are_set() -> None:
    """Which they read when they are imported; see `settings.options.ENVIRONMENT`."""
    modules = [f"{service}.__main__" for service in sorted(SERVICES)]
    assert added_modules({"grpc", "torch"}, *modules) == [set(), set(), set()]


@pytest.mark.process
def test_tests_of_what_imports_no_torch_import_none() -> None:
    modules = [module_name(path) for path in sources(*TESTS_WITHOUT_TORCH)]
    found = added_modules({"torch"}, *modules)
    first = next((module for module, names in zip(modules, found, strict=True) if names), None)
    assert first is None


@pytest.mark.parametrize("package", [*PACKAGES, "tests"])
def test_files_are_short(package: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources(package)}
    assert not {path: length for path, length in lengths.items() if length > MAX_LINES}


def test_rooms_are_small() -> None:
    paths = [path for path in sources(*PACKAGES, "tests") if path.name != "__init__.py"]
    rooms = {room: list(files) for room, files in groupby(paths, key=lambda path: path.parent)}
    sizes: dict[Path, int] = {}
    for room, files in rooms.items():
        sizes[room] = sizes.get(room, 0) + len(files)
    assert not {room: size for room, size in sizes.items() if size > MAX_FILES}


@pytest.mark.process
def test_a_feature_draft_imports_no_models_of_transformers() -> None:
    """They take more memory than its weights."""
    [added] = added_modules({"transformers.modeling_utils"}, "draft_service.service")
    assert not added
