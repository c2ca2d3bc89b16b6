from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console, RenderableType

from outrider.cli import report
from outrider.client.results import Generation, Latency, ServerInfo, Usage
from outrider.protocol.messages import ModelInfo, SpeculationStats, TextPiece

ALONE = Generation(
    text="ab",
    token_ids=[1, 2],
    finish_reason="stop",
    seed=0,
    usage=Usage(3, 2),
    speculation=SpeculationStats(0, 0, 0, []),
    latency=Latency(4_000_000, 1_000_000, 3_000_000, {"verify": 4_000_000}, {}),
)
SPECULATIVE = dataclasses.replace(
    ALONE,
    speculation=SpeculationStats(2, 4, 3, [0, 1, 1]),
    latency=Latency(
        4_000_000,
        1_000_000,
        1_500_000,
        {"draft": 1_000_000, "verify": 3_000_000},
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
    report.show(TextPiece("a", 1, "draft"), console)
    assert output.getvalue() == "\x1b[32ma\x1b[0m"


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, ""), (1.0, "████"), (2.0, "████"), (-1.0, ""), (0.5, "██"), (0.53, "██▏")],
)
def test_bars_have_eighths(share: float, expected: str) -> None:
    assert report.bar(share, width=4) == expected


def test_stages_have_durations_and_shares() -> None:
    lines = [line.split() for line in shown(report.report(SPECULATIVE)).splitlines()]
    assert ["verify", "3.0", "75.0%"] in [line[:3] for line in lines]
    assert ["draft", "1.0", "25.0%"] in [line[:3] for line in lines]
    assert ["detokenize", "0.5", "12.5%"] in [line[:3] for line in lines]


def test_speculation_is_told_in_counts() -> None:
    text = shown(report.report(SPECULATIVE))
    assert "3 of 4 draft tokens accepted (75.0%) in 2 steps · 2.50 tokens a step" in text
    assert "1.5 ms a token, 666.7 tokens/s" in text
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
    expected = "1 of 2 steps were cache hits · 3.00 tokens a step · 2.00 on the others"
    assert f"{expected} · of 9 tokens predrafted, 2 were accepted" in text


def test_pipelined_verifications_are_told() -> None:
    counts = dataclasses.replace(SPECULATIVE.speculation, num_pipelined_steps=4, num_stale_steps=2)
    told = "4 verifications were pipelined · 2 others were stale"
    assert told in shown(report.report(dataclasses.replace(SPECULATIVE, speculation=counts)))
    assert "pipelined" not in shown(report.report(SPECULATIVE))


def test_the_target_alone_has_no_ratios() -> None:
    text = shown(report.report(ALONE))
    assert "no speculation" in text
    assert "hidden" not in text


def test_a_single_token_has_no_speed() -> None:
    latency = dataclasses.replace(ALONE.latency, tpot_ns=0, wall_ns=0)
    single = dataclasses.replace(ALONE, latency=latency)
    assert "tokens/s" not in shown(report.report(single))
    assert report.speedup([single], [ALONE]) == 0.0


def test_speedup_is_target_only_time_over_speculative_time() -> None:
    told = shown(report.comparison([SPECULATIVE], [ALONE]))
    assert "speedup 2.00x, the same tokens · medians of 1 texts each" in told


def test_one_slow_text_of_several_is_no_speedup() -> None:
    latency = dataclasses.replace(ALONE.latency, tpot_ns=9 * ALONE.latency.tpot_ns)
    slow = dataclasses.replace(ALONE, latency=latency)
    assert report.speedup([SPECULATIVE] * 3, [ALONE, slow, ALONE]) == 2.0


def test_different_tokens_are_called_so() -> None:
    other = dataclasses.replace(ALONE, token_ids=[1, 3])
    assert "DIFFERENT tokens" in shown(report.comparison([SPECULATIVE] * 2, [ALONE, other]))


def test_models_in_words() -> None:
    def told(draft: ModelInfo | None) -> list[str]:
        target = ModelInfo("big", 8, 9, dtype="bfloat16", device="cuda:0")
        return report.in_words(ServerInfo("9", target, draft, 4, True)).splitlines()

    draft = ModelInfo("small", 8, 9, dtype="int8", device="cpu", num_threads=2)
    assert told(draft) == ["target: big bfloat16 (cuda:0)", "draft: small int8 (2 threads)"]
    assert told(None)[1] == "draft: none"
