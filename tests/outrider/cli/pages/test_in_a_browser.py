"""The page as Chromium shows it, on a telephone and on a desk."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from outrider.cli.html_report import read_result, write_page

RESULTS = Path(__file__).parents[4] / "benchmarks/results"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the path"),
]

# Shows the page in frames of several widths, with everything unfolded in the end, and leaves what
# was seen as JSON. Frames, since windows have a least width.
HARNESS = """<!DOCTYPE html><body><script>
const page = PAGE, seen = [];
for (const width of [400, 1280]) {
  const frame = document.createElement("iframe");
  frame.width = width;
  frame.height = 900;
  frame.srcdoc = page;
  frame.onload = () => {
    const inner = frame.contentDocument, root = inner.documentElement;
    const all = (what) => [...inner.querySelectorAll(what)];
    const outside = (one) => one.getBoundingClientRect().right > root.clientWidth;
    const folded = all("details").filter((one) => !one.open);
    const tables = all("table").filter((one) => !one.closest("details"));
    const found = {
      width,
      wide: tables.filter(outside).map((one) => one.innerText),
      num_tables: tables.length,
      headings: all("h1, h2, h3, h4").map((one) => [Number(one.tagName[1]), one.innerText]),
      broken: all("img").filter((one) => !one.complete || !one.naturalWidth).length,
      num_images: all("img").length,
      loaded: frame.contentWindow.performance.getEntriesByType("resource")
        .map((one) => one.name).filter((name) => !name.startsWith("data:")),
      conclusions: inner.querySelector(".conclusions").innerText,
    };
    folded.forEach((one) => { one.open = true; });
    found.overflow = root.scrollWidth - root.clientWidth;
    seen.push(found);
    if (seen.length === 2) {
      frame.parentElement.replaceChildren(JSON.stringify(seen));
    }
  };
  document.body.append(frame);
}
</script></body>"""


def seen(page: Path, folder: Path) -> list[dict[str, Any]]:
    """What Chromium shows of a page at both widths. Fails if it writes to its console."""
    harness = folder / "harness.html"
    source = json.dumps(page.read_text()).replace("</", "<\\/")
    harness.write_text(HARNESS.replace("PAGE", source))
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000"]
    command += [f"--user-data-dir={folder / 'profile'}", harness.as_uri()]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in finished.stderr, finished.stderr
    found = re.search(r"<body>(\[.*\])</body>", finished.stdout, re.DOTALL)
    assert found is not None, finished.stdout[-500:] + finished.stderr
    views: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    return sorted(views, key=lambda view: view["width"])


@pytest.mark.parametrize("names", [["bench"], ["timeline"], None], ids=["bench", "answers", "all"])
def test_a_page_is_readable_at_any_width(names: list[str] | None, tmp_path: Path) -> None:
    if names is None:
        paths = sorted(RESULTS.glob("*.json"))
    else:
        paths = [RESULTS / f"{name}.json" for name in names]
    write_page(paths, tmp_path / "page.html")
    findings = [
        finding
        for path in paths
        for section in read_result(path).sections
        for finding in section.findings
    ]
    assert findings
    for view in seen(tmp_path / "page.html", tmp_path):
        assert view["overflow"] <= 0
        assert view["wide"] == []
        assert view["num_tables"]
        assert view["num_images"]
        assert view["broken"] == 0
        assert view["loaded"] == []
        levels = [level for level, _ in view["headings"]]
        assert levels[:2] == [1, 2]
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert all(title for _, title in view["headings"])
        assert view["headings"][1][1] == "Conclusions"
        concluded = " ".join(view["conclusions"].split())
        assert all(finding in concluded for finding in findings)


def test_what_a_page_writes_to_the_console_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<div class=conclusions></div><script>console.error('no')</script>")
    with pytest.raises(AssertionError, match="CONSOLE"):
        seen(page, tmp_path)
