"""The committed stubs and the API reference are what `protos/` says."""

from __future__ import annotations

import runpy
from importlib.resources import files
from pathlib import Path

import pytest
from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PACKAGE = Path("outrider/v1")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `make proto` would write, by file name."""
    folder = tmp_path_factory.mktemp("stubs")
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "grpc_python", "pyi")]
    includes = [f"-I{ROOT / 'protos'}", f"-I{files('grpc_tools') / '_proto'}"]
    protos = [str(path) for path in sorted((ROOT / "protos" / PACKAGE).glob("*.proto"))]
    assert protoc.main(["protoc", *includes, *outputs, *protos]) == 0
    return {path.name: path.read_text() for path in (folder / PACKAGE).iterdir()}


def test_stubs_are_up_to_date(generated: dict[str, str]) -> None:
    committed = {path.name: path.read_text() for path in (ROOT / PACKAGE).glob("*_pb2*.py*")}
    stale = {name for name in generated | committed if generated.get(name) != committed.get(name)}
    assert not stale, "run `make proto`, and remove stubs without a .proto file"


def test_api_reference_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "protos/reference.py"), run_name="__main__")
    is_same = capsys.readouterr().out == (ROOT / "docs/api.md").read_text()
    assert is_same, "run `make proto`"


def test_every_field_has_a_comment() -> None:
    assert "|  |" not in (ROOT / "docs/api.md").read_text()
