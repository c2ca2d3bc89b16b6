from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console, RenderableType

from outrider.cli import report
from outrider.client.results import Generation, Latency, Usage
from outrider.protocol.messages import SpeculationStats, TextPiece
from outrider.protocol.stages import Stage

ALONE = Generation(
    text="ab",
    token_ids=[1, 2],
    finish_reason="stop",
    seed=0,
    usage=Usage(3, 2),
    speculation=SpeculationStats(0, 0, 0, []),
    latency=Latency(4_000_000, 1_000_000, 3_000_000, {"verify_compute": 4_000_000}, {}),
)
SPECULATIVE = dataclasses.replace(
    ALONE,
    speculation=SpeculationStats(2, 4, 3, [0, 1, 1]),
    latency=Latency(
        4_000_000,
        1_000_000,
        1_500_000,
        {"draft_compute": 1_000_000, "verify_compute": 3_000_000},
        {"detokenize": 500_000},
    ),
)


def shown(renderable: RenderableType) -> str:
    output = io.StringIO()
    Console(file=output, width=200, color_system=None).print(renderable)
    return output.getvalue()


def test_what_is_piped_is_the_text_itself() -> None:
    pieces = ["a\tb\r\n", "\x0c[red]", "\x1b[1m \r", "\t"]
    output = io.StringIO()
    for piece in pieces:
        report.show(TextPiece(piece, 1, "draft"), Console(file=output, width=4))
    assert output.getvalue() == "".join(pieces)


def test_a_terminal_sees_whose_a_piece_is() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system="standard")
    for source in ("draft", "lookup", "target"):
        report.show(TextPiece("a", 1, source), console)
    assert output.getvalue() == "\x1b[32ma\x1b[0m\x1b[35ma\x1b[0ma"


def test_a_text_cannot_control_the_terminal() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system=None)
    report.show(TextPiece("a\x1b]0;title\x07\x1b[2J\x9b2J\x7f\r\n\tb", 1, "target"), console)
    assert output.getvalue() == "a␛]0;title␇␛[2J\ufffd2J\ufffd\n        b"


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, ""), (1.0, "████"), (2.0, "████"), (-1.0, ""), (0.5, "██"), (0.53, "██▏")],
)
def test_bars_have_eighths(share: float, expected: str) -> None:
    assert report.bar(share, width=4) == expected


def lines(renderable: RenderableType) -> list[list[str]]:
    return [line.split() for line in shown(renderable).splitlines()]


def test_stages_have_durations_shares_and_meanings() -> None:
    latency = dataclasses.replace(
        SPECULATIVE.latency, critical_path={"verify_compute": 3_000_000, "queue": 1, "new": 500_000}
    )
    found = lines(report.report(dataclasses.replace(SPECULATIVE, latency=latency)))
    assert ["verify_compute", "3.0", "75.0%"] in [line[:3] for line in found]
    assert ["detokenize", "0.5", "12.5%"] in [line[:3] for line in found]
    assert ["new", "0.5", "12.5%"] in [line[:3] for line in found]  # of a newer orchestrator
    assert Stage.VERIFY_COMPUTE.meaning in shown(report.report(SPECULATIVE))
    assert "queue" not in {line[0] for line in found if line}  # 0.0 %


def test_time_is_summed_by_where_it_passed() -> None:
    path = {"verify_compute": 2_000_000, "verify_queue": 500_000, "verify_network": 1_000_000}
    hidden = {"draft_compute": 2_000_000, "prefill_draft": 1_000_000}
    found = lines(report.tracks_table({**path, "tokenize": 500_000}, hidden, 4_000_000))
    assert [line[:3] for line in found[1:]] == [
        ["draft", "0.0", "0.0%"],
        ["target", "2.5", "62.5%"],
        ["network", "1.0", "25.0%"],
        ["orchestrator", "0.5", "12.5%"],
    ]
    assert found[1][-3:] == ["3.0", "ms", "hidden"]


def test_a_report_fits_into_80_columns() -> None:
    stages = {stage.value: 10**9 for stage in Stage} | {"verify_queue": 10**11}
    latency = Latency(10**11, 10**11, 10**11, stages, stages)
    counts = SpeculationStats(99, 1000, 400, [9] * 17, num_predrafted_tokens=9999)
    generation = dataclasses.replace(SPECULATIVE, latency=latency, speculation=counts)
    output = io.StringIO()
    console = Console(file=output, width=80, color_system=None, soft_wrap=True)
    console.print(report.report(generation))
    console.print(report.comparison([generation], [generation]))
    console.print(report.legend())
    assert max(map(len, output.getvalue().splitlines())) <= 80


@pytest.mark.parametrize("width", [20, 60])
def test_shares_are_whole_in_a_narrow_terminal(width: int) -> None:
    output = io.StringIO()
    Console(file=output, width=width, soft_wrap=True).print(report.report(SPECULATIVE))
    assert "75.0%" in output.getvalue()


def test_tokens_are_told_by_their_source() -> None:
    counts = SpeculationStats(
        num_steps=3,
        num_draft_tokens=8,
        num_accepted_tokens=5,
        acceptance_histogram=[1, 0, 1, 1, 0],
        num_lookup_steps=1,
        num_lookup_draft_tokens=4,
        num_lookup_accepted_tokens=3,
    )
    usage = Usage(3, 11)
    found = lines(report.report(dataclasses.replace(SPECULATIVE, usage=usage, speculation=counts)))
    assert ["draft", "2", "4", "50.0%"] in found
    assert ["prompt", "lookup", "3", "4", "75.0%"] in found
    assert ["target", "6"] in found
    text = shown(report.report(dataclasses.replace(SPECULATIVE, speculation=counts)))
    assert "with draft tokens: 3 steps, 2.67 tokens a step" in text
    assert "steps that accepted 0, 1, 2, ...: 1 0 1 1\n" in text
    assert "then 1.5 ms a token, 666.7 tokens/s" in text
    assert "predrafted" not in text


def test_what_was_predrafted_is_told() -> None:
    counts = dataclasses.replace(
        SPECULATIVE.speculation,
        num_cache_hits=1,
        num_cache_misses=1,
        num_cache_hit_accepted_tokens=2,
        num_predrafted_tokens=9,
    )
    text = shown(report.report(dataclasses.replace(SPECULATIVE, speculation=counts)))
    assert "predrafted tokens: 9, of which 2 accepted; cache hits: 1 of 2 steps" in text


def test_verifications_that_were_sent_early_are_told() -> None:
    counts = dataclasses.replace(SPECULATIVE.speculation, num_pipelined_steps=4, num_stale_steps=2)
    told = "verifications sent before the previous result: 4 in time, 2 stale"
    assert told in shown(report.report(dataclasses.replace(SPECULATIVE, speculation=counts)))
    assert "stale" not in shown(report.report(SPECULATIVE))


def test_a_draft_that_was_lost_on_the_way_was_there_for_a_part() -> None:
    failed = {"draft_failure": "the draft: Socket closed"}
    alone = shown(report.report(dataclasses.replace(ALONE, **failed)))
    assert "\nwithout the draft: Socket closed\n" in alone
    lost = shown(report.report(dataclasses.replace(SPECULATIVE, **failed)))
    assert "\npartly without the draft: Socket closed\n" in lost


def test_the_target_alone_has_no_ratios() -> None:
    text = shown(report.report(ALONE))
    assert "the target alone" in text
    assert "hidden" not in text


def test_a_single_token_has_no_speed() -> None:
    latency = dataclasses.replace(ALONE.latency, tpot_ns=0, wall_ns=0)
    single = dataclasses.replace(ALONE, latency=latency)
    assert "tokens/s" not in shown(report.report(single))
    assert report.speedup([single], [ALONE]) == 0.0


def test_speedup_is_target_only_time_over_speculative_time() -> None:
    told = shown(report.comparison([SPECULATIVE], [ALONE]))
    assert "speedup 2.00x · same text: yes · medians of 1 texts each" in told


def test_one_slow_text_of_several_is_no_speedup() -> None:
    latency = dataclasses.replace(ALONE.latency, tpot_ns=9 * ALONE.latency.tpot_ns)
    slow = dataclasses.replace(ALONE, latency=latency)
    assert report.speedup([SPECULATIVE] * 3, [ALONE, slow, ALONE]) == 2.0


def test_different_tokens_are_called_so() -> None:
    other = dataclasses.replace(ALONE, token_ids=[1, 3])
    assert "same text: NO" in shown(report.comparison([SPECULATIVE] * 2, [ALONE, other]))
