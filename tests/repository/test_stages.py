"""The stages of latency reports are the same in code, protocol and docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from outrider.protocol.stages import Stage, Track

ROOT = Path(__file__).parents[2]
STAGES = {stage.value: stage.track.value for stage in Stage}


def test_the_protocol_lists_every_stage_with_a_comment() -> None:
    text = (ROOT / "protos/outrider/v1/generation.proto").read_text()
    [message] = re.findall(r"message StageDuration \{(.*?)\n\}", text, re.DOTALL)
    listed, track = {}, ""
    for line in message.splitlines():
        if stage := re.match(r"  //   (\w+): \w.*\.$", line):
            listed[stage[1]] = track
        elif heading := re.match(r"  // (?:On|In) the (\w+)\b.*:$", line):
            track = heading[1]
    assert listed == STAGES


def test_the_docs_explain_every_stage() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (ROOT / "docs/latency.md").read_text(), re.M)
    assert dict(rows) == STAGES
    assert len(rows) == len(STAGES)


@pytest.mark.parametrize("stage", Stage)
def test_a_stage_fits_its_column(stage: Stage) -> None:
    assert 0 < len(stage.meaning) <= 30


def test_every_track_has_stages() -> None:
    assert {stage.track for stage in Stage} == set(Track)
