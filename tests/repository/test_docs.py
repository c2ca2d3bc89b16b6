"""What the docs name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "deploy/ghz/README.md",
    ROOT / "outrider/embedded/README.md",
]
SOURCES = [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts]


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
