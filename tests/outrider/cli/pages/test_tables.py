from __future__ import annotations

from typing import Any

from outrider.cli.pages.tables import table, tables


def shown(value: Any) -> dict[str, list[list[str]]]:
    return {
        table.title: [table.headings, *([cell.text for cell in row] for row in table.rows)]
        for table in tables("t", value)
    }


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


def test_chosen_figures_stand_as_they_were_written() -> None:
    made = table("t", ["way", "speed", "of"], [("alone", "1.00x", None), ("pair", "1.35x", 8)])
    assert [[cell.text for cell in row] for row in made.rows] == [
        ["alone", "1.00x", ""],
        ["pair", "1.35x", "8"],
    ]
    assert [cell.is_number for cell in made.rows[1]] == [False, True, True]
