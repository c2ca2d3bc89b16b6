"""Words that the project had for itself are gone, and the field's stand in their place.

See docs/glossary.md.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Words of nothing else, with what to say instead.
REPLACED = {
    "assumes_verdict": "assumes_result",
    "barren": "failed",
    "breadth": "fan-out",
    "choosings": "sampling specs",
    "foresee": "pipelined verification",
    "foresight": "pipelined verification",
    "going_on": "run-ahead",
    "is_more": "is_run_ahead",
    "mirror": "sequence sync",
    "num_branches": "num_predrafts",
    "num_more_tokens": "num_run_ahead_tokens",
    "outcome_table": "speculation cache",
    "prepared_steps": "cache hits",
    "verdict": "verify result",
}

# Common words, which are not the names of these things, by where.
NAMES = {
    "": {
        "branch": "predraft",
        "branches": "predrafts",
        "choosing": "sampling spec",
        "goes_on": "run-ahead",
        "hair": "epsilon",
        "in_turn": "sequential",
        "is_far": "long round trip",
        "lack": "logit gap",
        "pace": "batch limits",
        "partners": "interfaces",
        "prepared": "predrafted",
        "turned": "rotated",
    },
    "orchestrator/": {
        "Beside": "concurrent draft",
        "beside": "concurrent draft",
        "Distance": "round-trip time",
        "distance": "round-trip time",
        "Drafted": "step record",
        "far": "long round trip",
        "lengths": "draft policy",
        "patience": "wait budget",
        "patience_ns": "wait budget",
        "rests": "idle",
    },
    "outrider/engine/": {"patience": "passes left out", "pieces": "query blocks"},
}

SUFFIXES = {".py", ".proto", ".md", ".toml", ".yml", ".json", ".js", ".html"}
NOT_OURS = ("benchmarks/results/", "outrider/embedded/training/", "outrider/v1/")


def own_files() -> list[Path]:
    """Files of the repository that are written by hand, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    paths = [Path(name) for name in listed if not name.startswith(NOT_OURS)]
    return [path for path in paths if path.suffix in SUFFIXES and path.name != Path(__file__).name]


def names_in(path: Path) -> set[str]:
    """The identifiers of a Python file, without underscores around them, and its own name."""
    tokens = tokenize.generate_tokens(io.StringIO((ROOT / path).read_text()).readline)
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    return {name.strip("_") for name in names} | {path.stem}


@pytest.mark.parametrize("word", sorted(REPLACED))
def test_replaced_words_are_gone(word: str) -> None:
    pattern = re.compile(rf"(?<![a-z]){word}", re.IGNORECASE)
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in own_files()
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, f"say: {REPLACED[word]}"


@pytest.mark.parametrize("folder", NAMES)
def test_names_are_those_of_the_field(folder: str) -> None:
    found = [
        f"{path}: {name}, say: {NAMES[folder][name]}"
        for path in own_files()
        if path.suffix == ".py" and str(path).startswith(folder)
        for name in names_in(path) & set(NAMES[folder])
    ]
    assert not found
