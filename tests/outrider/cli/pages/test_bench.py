from __future__ import annotations

from typing import Any

import pytest

from outrider.cli.pages.bench import questions
from outrider.cli.pages.section import Section


def way(ms: float, speedup: float, different: int | None = 0, **stages: float) -> dict[str, Any]:
    return {
        "ms_per_token": ms,
        "first_token_ms": 2 * ms,
        "speedup": speedup,
        "num_different": different,
        "num_prompts": 3,
        "num_tokens": 96,
        "critical_path_ms_per_token": stages,
    }


MODES = {
    "transformers": {**way(80.0, 0.5, None)},
    "target only": way(40.0, 1.0, verify_compute=40.0),
    "sequential": way(32.0, 1.25, verify_compute=30.0, draft_compute=2.0),
    "pipelined": way(
        25.0, 1.6, prefill_target=5.0, verify_compute=15.0, verify_network=4.0, orchestrator=1.0
    ),
}
POINTS = {
    mode: {k: way(30.0, speedup) for k, speedup in (("1", 1.1), ("4", 1.3))}
    for mode in ("sequential", "pipelined")
}
SECTIONS: dict[str, Any] = {
    "modes": {"temperature 0": MODES, "temperature 1": MODES},
    "rtt": {"draft": {"0": MODES, "20": MODES}, "target": {"20": MODES}, "both": {"20": MODES}},
    "lengths": {"target only": MODES["target only"], **POINTS},
    "acceptance": {"target only": MODES["target only"], **POINTS},
    "capacity": {
        "target only": {"1": 20.0, "8": 80.0},
        "both on the target's host": {"1": 19.0, "8": 70.0},
        "two hosts": {"1": 30.0, "8": 60.0},
    },
}
COSTS = {"1": {"verify_ms": 40.0}, "4": {"verify_ms": 43.0}}


def of(title: str, sections: dict[str, Any] = SECTIONS) -> Section:
    made = questions({"sections": sections, "costs": COSTS})
    return next(section for section in made if section.title == title)


def texts(section: Section) -> list[list[str]]:
    return [[cell.text for cell in row] for row in section.tables[0].rows]


def test_each_question_has_conclusions_a_drawing_and_figures() -> None:
    made = questions({"sections": SECTIONS})
    assert [section.title for section in made] == [
        "How fast?",
        "Where does the time go?",
        "What does distance cost?",
        "How many sessions?",
        "What would a better draft give?",
        "How many draft tokens a step?",
    ]
    for section in made:
        assert section.findings
        assert len(section.plots) == 1
        assert all(row for table in section.tables for row in table.rows)


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("How fast?", "Pipelined, the pair takes 25.0 ms a token, and the target alone 40.0 ms: "
         "1.60 times as fast, greedy; 1.60 times as fast, at temperature 1 (medians of 3 texts of "
         "32 tokens)."),
        ("Where does the time go?", "80 % in the target, 16 % in the network, 4 % in the "
         "orchestrator and 0 % in the draft"),
        ("What does distance cost?", "1.60x with 20 ms more to the draft, 1.60x with 20 ms more to "
         "the target and 1.60x"),
        ("How many sessions?", "8 sessions together get 80 tokens a second from the target alone, "
         "where 1 gets 20."),
        ("How many sessions?", "0.75 times as many for 8 and 1.50 times as many for 1."),
        ("What would a better draft give?", "1.30 times as fast if it is right with probability 4"),
        ("How many draft tokens a step?", "k = 4 is fastest: 1.30 times as fast"),
    ],
)  # fmt: skip
def test_conclusions_are_sentences_with_the_figures(title: str, said: str) -> None:
    assert said in " ".join(of(title).findings)


def test_texts_that_differ_are_said_loudly_and_those_of_others_do_not_count() -> None:
    assert of("How fast?").findings[1].startswith("Every text of ours")
    ways = {**MODES, "transformers": way(80.0, 0.5, 7), "pipelined": way(25.0, 1.6, 2, draft=1.0)}
    found = of("How fast?", {"modes": {"temperature 0": ways}})
    assert found.findings[1] == "2 of our texts DIFFER from the target's own."


def test_figures_stand_in_tables_and_details() -> None:
    assert texts(of("How fast?"))[-1] == ["pair, pipelined", "25.0", "1.60x", "1.60x"]
    assert texts(of("Where does the time go?"))[-1][1:] == ["0.0", "20.0", "4.0", "1.0", "25.0"]
    assert texts(of("How many sessions?"))[0] == ["target alone", "20", "80"]
    stages = of("Where does the time go?").details[0].rows
    assert [cell.text for cell in stages[0]][1:] == [
        "target reads the prompt",
        "0.00",
        "0.00",
        "5.00",
    ]
    details = of("How many draft tokens a step?").details
    assert "costs of a sequential step, by k" in [table.title for table in details]


def test_of_a_part_of_a_run_there_are_its_questions() -> None:
    part = {"lengths": SECTIONS["lengths"], "capacity": None}
    assert [section.title for section in questions({"sections": part})] == [
        "How many draft tokens a step?"
    ]
    alone = {"modes": {"temperature 0": {"target only": MODES["target only"]}}}
    assert [section.findings for section in questions({"sections": alone})] == [[], []]
