from __future__ import annotations

from typing import Any

from outrider.cli.pages.texts import text_by_text

SPEEDUPS = {"median": 1.2, "mean": 1.3, "least": 0.9}


def result(**summary: Any) -> dict[str, Any]:
    texts = [{"prompt": "a <b>", "pair": 1.3}, {"prompt": "c", "pair": 0.9}]
    return {"summary": {"pair": SPEEDUPS, "texts_that_differ": 0, **summary}, "texts": texts}


def test_speedups_over_many_texts_are_summed_up() -> None:
    section = text_by_text(result())
    assert section.findings == [
        "Over 2 texts the pair is 1.30 times as fast as the target alone in the mean "
        "(median 1.20, least 0.90)."
    ]
    assert [cell.text for cell in section.tables[0].rows[0]] == ["pair", "1.30x", "1.20x", "0.90x"]
    assert len(section.details[0].rows) == 2


def test_texts_that_differ_are_said_loudly() -> None:
    assert "DIFFER" in text_by_text(result(texts_that_differ=1)).findings[-1]
