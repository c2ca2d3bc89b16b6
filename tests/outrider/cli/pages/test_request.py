from __future__ import annotations

from typing import Any

from outrider.cli.pages.request import answer
from outrider.cli.pages.section import Section


def interval(track: str, lane: str, name: str, begin_ms: int, ms: int, **counts: int) -> Any:
    return {
        "track": track,
        "lane": lane,
        "name": name,
        "begin_ns": begin_ms * 1_000_000,
        "duration_ns": ms * 1_000_000,
        "counts": counts,
    }


REQUEST = {
    "prompt": "What is a <heron>?",
    "text": "A bird",
    "usage": {"num_prompt_tokens": 9, "num_output_tokens": 3},
    "speculation": {"num_draft_tokens": 4, "num_accepted_tokens": 1, "num_steps": 1},
    "latency": {
        "wall_ns": 100_000_000,
        "ttft_ns": 60_000_000,
        "tpot_ns": 20_000_000,
        "critical_path": {"prefill_target": 60_000_000, "verify_compute": 15_000_000,
                          "verify_network": 15_000_000, "draft_compute": 10_000_000},
        "hidden": {"detokenize": 1_000_000},
    },
    "draft_failure": "",
    "pieces": [{"text": "A", "source": "target"}, {"text": " bird", "source": "draft"},
               {"text": ".", "source": "lookup"}],
    "trace": [
        interval("orchestrator", "steps", "target alone", 0, 60, draft_tokens=0, accepted_tokens=0),
        interval("orchestrator", "steps", "1 of 4 accepted", 60, 40, draft_tokens=4,
                 accepted_tokens=1),
        interval("orchestrator", "critical path", "verify_compute", 60, 40),
        interval("orchestrator", "text", "detokenize", 60, 1),
        interval("network", "to the target", "verify", 61, 2),
        interval("target", "session", "verify", 63, 30),
        interval("target", "session", "queue", 63, 5),
        interval("target", "session", "forward", 68, 25),
        interval("draft", "predrafts 1", "predraft", 70, 9),
        interval("draft", "predrafts 2", "predraft", 70, 9),
    ],
}  # fmt: skip


def sections(**changes: Any) -> list[Section]:
    return answer({**REQUEST, **changes})


def test_an_answer_has_its_text_its_shares_and_its_steps() -> None:
    text, shares, steps = sections()
    assert text.findings == [
        "3 tokens in 0.10 s: the first after 60 ms, then one in 20.0 ms, 50.0 a second "
        "(prompt: 9 tokens).",
        "1 of 4 draft tokens were accepted, so that 3 tokens took 2 passes of the target.",
    ]
    assert shares.shares == {"target": 0.75, "network": 0.15, "draft": 0.1, "orchestrator": 0.0}
    assert "target 75.0 %, network 15.0 %" in shares.findings[0]
    first = [cell.text for cell in shares.tables[0].rows[0]]
    assert first == ["prefill_target", "target reads the prompt", "60.0", "60.0 %"]
    assert len(steps.details[0].rows) == 2


def test_a_draft_that_failed_is_said() -> None:
    assert sections(draft_failure="it is gone")[0].findings[-1] == "The draft failed: it is gone"


def test_work_is_drawn_once_in_the_lane_of_who_does_it() -> None:
    timeline = sections()[2].timeline
    drawn = [
        (timeline.lanes[bar.lane], bar.begin, bar.width, bar.is_queue) for bar in timeline.bars
    ]
    assert drawn == [
        ("orchestrator", 60, 1, False),
        ("network", 61, 2, False),
        ("target", 63, 5, True),
        ("target", 68, 25, False),
        ("draft, ahead", 70, 9, False),
    ]
    assert timeline.ends == [60, 100]
    assert timeline.ticks[:2] == [0, 10]


def test_an_answer_without_a_trace_has_an_empty_timeline() -> None:
    assert sections(trace=[])[2].timeline.ticks == [0]
