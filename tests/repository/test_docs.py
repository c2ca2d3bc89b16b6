"""What the docs name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from outrider import errors

ROOT = Path(__file__).parents[2]
DOCS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "deploy/ghz/README.md",
    ROOT / "outrider/embedded/README.md",
]
SOURCES = [
    path
    for path in ROOT.rglob("*.py")
    if {".venv", "build"}.isdisjoint(path.relative_to(ROOT).parts)  # build: what pip leaves there
]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not target.startswith("http"):
            file, _, anchor = target.partition("#")
            linked = path.parent / file if file else path
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def anchors(path: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_files_exist(path: Path) -> None:
    ends = {"/".join(source.parts[i:]) for source in SOURCES for i in range(len(source.parts))}
    for name in re.findall(r"`([\w/]+\.py)`", path.read_text()):
        assert name in ends, name


def test_structure_lists_every_room() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/structure.md").read_text(), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    rooms = {str(source.parent.relative_to(ROOT)) for source in SOURCES}
    # Rooms of tests are those of what they test, and `outrider` holds rooms only.
    missing = {room for room in rooms if not room.startswith("tests/")} - listed
    assert missing <= {".", "outrider", "outrider/v1"}
    assert listed - rooms == {"protos/outrider/v1", "deploy"}


def test_rooms_say_what_belongs_there() -> None:
    silent = [
        source
        for source in SOURCES
        if source.name == "__init__.py" and not ast.get_docstring(ast.parse(source.read_text()))
    ]
    assert not silent


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs/decisions").glob("0*.md")), ids=lambda p: p.stem
)
def test_decisions_have_their_parts(path: Path) -> None:
    number = int(path.name[:4])
    text = path.read_text()
    assert text.startswith(f"# {number}. ")
    assert re.search(r"^Status: (accepted|superseded)", text, re.MULTILINE)
    for part in ("Context", "Decision", "Cost"):
        assert f"\n**{part}.** " in text
    assert f"({path.name})" in (path.parent / "README.md").read_text()


def rows_of(page: str) -> list[list[str]]:
    """The cells of all tables of a page."""
    lines = re.findall(r"^\| (.*) \|$", (ROOT / page).read_text(), re.MULTILINE)
    return [line.split(" | ") for line in lines]


def test_troubleshooting_lists_the_reasons_of_errors() -> None:
    listed = {
        (reason, code)
        for reasons, codes, *_ in rows_of("docs/troubleshooting.md")
        if re.fullmatch(r"[A-Z_, ]+", codes)
        for reason in re.findall(r"`([A-Z_]+)`", reasons)
        for code in codes.split(", ")
        if reason == code or "," not in codes
    }
    kinds = {(kind.reason, kind.code.name) for kind in errors.kinds_of(errors.OutriderError)}
    # Of services that do not start, and of what an orchestrator asks for.
    elsewhere = {"CONFIGURATION", "MODEL_NOT_FOUND", "UNSUPPORTED_MODEL", "CONTEXT_MISMATCH"}
    assert listed == {(reason, code) for reason, code in kinds if reason not in elsewhere}


def test_troubleshooting_quotes_what_is_said() -> None:
    texts = [
        path.read_text() for path in [*SOURCES, ROOT / "Makefile"] if "tests" not in path.parts
    ]
    said = re.sub(r'"\s+f?"|\{[^}\n]*\}', "", "\n".join(texts))
    quoted = [
        part.strip(" .")
        for seen, *_ in rows_of("docs/troubleshooting.md")
        for quote in re.findall(r"`([^`]* [^`]*)`", seen)
        if not quote.startswith("outrider ")
        for part in re.split(r"\.\.\.|\(|\)", quote)
    ]
    assert len(quoted) > 20
    assert not [part for part in quoted if part not in said]
