from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from outrider.cli import main as cli
from outrider.cli.html_report import read_result, tables, write_page
from outrider.errors import ConfigurationError

ROOT = Path(__file__).parents[3]
RESULT = {
    "benchmark": "a <b>",
    "date": "2026-01-01",
    "hardware": {"cpu": "some & other", "cores": 2},
    "settings": {"threads": 1},
    "figures": {"ms_per_token": {"alone": 50.0, "with draft": 25.0}},
}


class Page(HTMLParser):
    """The text of each cell, tags that were not closed, and addresses that are loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def page_of(folder: Path, document: Any = RESULT) -> tuple[str, Page]:
    (folder / "result.json").write_text(json.dumps(document))
    write_page([folder / "result.json"], folder / "page.html")
    text = (folder / "page.html").read_text()
    return text, Page(text)


def shown(value: Any) -> dict[str, list[list[str]]]:
    return {
        table.title: [table.headings, *([cell.text for cell in row] for row in table.rows)]
        for table in tables("t", value)
    }


def test_a_page_has_figures_circumstances_and_plots(tmp_path: Path) -> None:
    (tmp_path / "result_curve.svg").write_text("<svg/>")
    (tmp_path / "other_curve.svg").write_text("<svg/>")
    (tmp_path / "result_long.json").write_text("{}")
    (tmp_path / "result_long_curve.svg").write_text("<svg></svg>")  # not of result.json
    text, page = page_of(tmp_path)
    assert page.open == []
    assert page.cells[:5] == ["alone", "50", "", "with draft", "25"]
    assert re.findall(r"width: ([\d.]+)%\"", text) == ["100.0", "50.0"]
    assert "<h2>a &lt;b&gt;</h2>" in text
    assert "some & other" in page.cells
    assert page.loaded == ["data:image/svg+xml;base64,PHN2Zy8+"]  # and nothing from elsewhere


def test_records_of_any_form_become_tables() -> None:
    assert shown([{"k": 1, "ms": {"a": 2.0, "b": 3.14159}}, {"k": 2, "note": "x"}]) == {
        "t": [["k", "ms a", "ms b", "note"], ["1", "2", "3.142", ""], ["2", "", "", "x"]]
    }
    assert shown({"first": {"n": 1, "all": [1, 2]}, "second": {"n": 2, "all": []}}) == {
        "t": [["", "n", "all"], ["first", "1", "1, 2"], ["second", "2", ""]]
    }
    assert shown({"n": 5, "deep_one": {"x": 1, "y": {"z": True}}, "none": {}}) == {
        "t": [[], ["n", "5"]],
        "t: deep one": [[], ["x", "1"]],
        "t: deep one: y": [[], ["z", "True"]],
    }


def test_long_tables_are_folded_up(tmp_path: Path) -> None:
    document = {**RESULT, "figures": [{"n": n} for n in range(50)]}
    text, _ = page_of(tmp_path, document)
    assert "<summary>figures, 50 rows</summary>" in text


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")))
def test_every_result_of_ours_can_be_shown(path: Path) -> None:
    result = read_result(path)
    assert any(table.rows for table in result.tables)
    for table in result.tables:
        assert all(len(row) == len(table.headings or row) for row in table.rows)


@pytest.mark.parametrize("content", ["{", "[]", "{}", "\udcff"])
def test_what_is_no_result_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(ConfigurationError, match=r"odd\.json"):
        read_result(path)
    with pytest.raises(ConfigurationError, match=r"absent\.json"):
        read_result(tmp_path / "absent.json")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page_of(tmp_path)
    finished = CliRunner().invoke(cli.cli, ["report", "result.json", "--output", "mine.html"])
    assert finished.output == "wrote mine.html\n"
    assert Path("mine.html").read_text() == Path("page.html").read_text()
    with pytest.raises(ConfigurationError, match="nowhere"):
        write_page([Path("result.json")], Path("nowhere/page.html"))
