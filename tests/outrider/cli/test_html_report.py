from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from outrider.cli import main as cli
from outrider.cli.html_report import read_result, write_page
from outrider.errors import ConfigurationError
from tests.outrider.cli.pages.test_bench import SECTIONS
from tests.outrider.cli.pages.test_request import REQUEST

ROOT = Path(__file__).parents[3]
RESULT = {
    "benchmark": "result",
    "date": "2026-01-01",
    "command": "python -m it",
    "hardware": {"cpu": "some & other", "cores": 2},
    "settings": {"threads": 1, "name": "a <b>"},
    "figures": {"ms_per_token": {"alone": 50.0, "with draft": 25.0}},
}


class Page(HTMLParser):
    """The text of each cell, tags that were not closed, and addresses that are loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.marked: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "line", "rect"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data
        if self.open and self.open[-1] == "mark":
            self.marked.append(data)


def page_of(folder: Path, document: Any = RESULT) -> tuple[str, Page]:
    (folder / "result.json").write_text(json.dumps(document))
    write_page([folder / "result.json"], folder / "page.html")
    text = (folder / "page.html").read_text()
    page = Page(text)
    assert page.open == []
    return text, page


def test_a_page_has_figures_circumstances_and_plots(tmp_path: Path) -> None:
    (tmp_path / "result_curve.svg").write_text("<svg/>")
    (tmp_path / "other_curve.svg").write_text("<svg/>")
    (tmp_path / "result_long.json").write_text("{}")
    (tmp_path / "result_long_curve.svg").write_text("<svg></svg>")  # not of result.json
    text, page = page_of(tmp_path)
    assert page.cells[:5] == ["alone", "50", "", "with draft", "25"]
    assert re.findall(r"width: ([\d.]+)%\"", text) == ["100.0", "50.0"]
    assert {"some & other, 2", "python -m it", "a <b>"} <= set(page.cells)
    assert page.loaded == ["data:image/svg+xml;base64,PHN2Zy8+"]  # and nothing from elsewhere


def test_conclusions_come_first_and_drawings_stand_with_their_question(tmp_path: Path) -> None:
    for plot in ("rtt", "modes", "another"):
        (tmp_path / f"result_{plot}.svg").write_text(f"<svg>{plot}</svg>")
    text, _ = page_of(tmp_path, {**RESULT, "sections": SECTIONS})
    headings = re.findall(r"<h(\d)[^>]*>(.*?)</h\1>", text)
    assert headings[:3] == [("1", "Outrider: result"), ("2", "Conclusions"), ("2", "How fast?")]
    assert headings[-1] == ("2", "Machine, versions and commands")
    drawn = re.findall(r'<img alt="(.*?)"', text)
    assert drawn == ["result, another", "How fast?", "What does distance cost?"]
    assert text.index("1.60 times as fast, greedy") < text.index("<img")


def test_several_results_each_have_a_heading_and_others_are_folded(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.json" for name in ("first", "second", "plain")]
    for path, document in zip(paths, [{"sections": SECTIONS}] * 2 + [RESULT], strict=True):
        path.write_text(json.dumps({"benchmark": "x", **document}))
    write_page(paths, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert re.findall(r"<h2 id=\"(\w+)\">", text) == ["first", "second"]
    assert text.count("<h3>How fast?</h3>") == 2
    assert '<a href="#second">second</a>' in text
    assert "<details><summary>plain</summary>" in text


def test_an_answer_shows_which_tokens_were_accepted(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, REQUEST)
    assert page.marked == [" bird", ".", "the draft's", "those of prompt lookup"]
    assert "What is a &lt;heron&gt;?" in text
    assert '<i class="target"></i>target 75.0 %' in text
    assert text.count("<rect") == 5
    kept = {"benchmark": "x", "requests": {"sequential": REQUEST, "pipelined": REQUEST}}
    text, page = page_of(tmp_path, kept)
    assert page.marked == [" bird", ".", "the draft's", "those of prompt lookup"] * 2
    assert "pipelined: 1 of 4 draft tokens were accepted" in text


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")))
def test_every_result_of_ours_can_be_shown(path: Path) -> None:
    result = read_result(path)
    shown = [
        *result.tables,
        *(table for section in result.sections for table in (*section.tables, *section.details)),
    ]
    assert any(table.rows for table in shown)
    for table in shown:
        assert all(len(row) == len(table.headings or row) for row in table.rows)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        "\udcff",
        '{"pieces": 1}',
        '{"benchmark": "x", "sections": {"modes": {"a": 1}}}',
        "[" * 100_000,
        '{"benchmark": "x", "figures": ' + '{"a": ' * 500 + "1" + "}" * 501,
    ],
)
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
