"""Reports about texts in the terminal: whose tokens they are, and where the time went.

They fit into 80 columns. `docs/latency.md` explains the stages.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from outrider.cli.pages.shares import by_track
from outrider.client.results import Generation
from outrider.protocol.messages import SpeculationStats, TextPiece
from outrider.protocol.stages import Stage, Track

# By the source of a token. The target's own have the terminal's own colour.
STYLES = {"draft": "green", "lookup": "magenta", "target": ""}

_NAME_WIDTH = 16
_BAR_WIDTH = 12

_STAGES = {stage.value: stage for stage in Stage}
_SMALLEST_SHARE = 0.0005  # shown as 0.1 %

_ENDS = {
    "stop": "the text ended",
    "length": "max_new_tokens reached",
    "context_limit": "the context is full",
}

Row = tuple[str, str, float, str]

# Of control characters, which could do anything to a terminal: symbols. Rich drops "\r" itself.
_SYMBOLS = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"},
    **dict.fromkeys(range(0x7F, 0xA0), 0xFFFD),
}


def legend() -> Text:
    """One line that explains the colours."""
    return Text.assemble(
        ("the draft's accepted tokens", STYLES["draft"]),
        " · ",
        ("those of prompt lookup", STYLES["lookup"]),
        " · ",
        ("the target's own", STYLES["target"]),
    )


def show(piece: TextPiece, console: Console) -> None:
    """Writes a piece of text: to a terminal in colour, with symbols for control characters; else
    unchanged."""
    if console.is_terminal:
        console.print(Text(piece.text.translate(_SYMBOLS), STYLES[piece.source]), end="")
    else:
        console.file.write(piece.text)
        console.file.flush()


def report(generation: Generation) -> RenderableType:
    """Where the time went, the speed, and whose tokens they are."""
    latency, failure = generation.latency, generation.draft_failure.removeprefix("the draft: ")
    tables = {"critical path": latency.critical_path, "hidden behind it": latency.hidden}
    return Group(
        tracks_table(latency.critical_path, latency.hidden, latency.wall_ns),
        *(
            Group(Text(), stages_table(title, stages, latency.wall_ns))
            for title, stages in tables.items()
            if stages
        ),
        Text(),
        Text(_speed(generation)),
        *_speculation(generation),
        *([Text(f"{_without(generation)} the draft: {failure}", "yellow")] if failure else []),
    )


def _without(generation: Generation) -> str:
    counts = generation.speculation
    was_there = counts.num_draft_tokens > counts.num_lookup_draft_tokens
    return "partly without" if was_there else "without"


def tracks_table(
    critical_path: Mapping[str, int], hidden: Mapping[str, int], wall_ns: int
) -> RenderableType:
    """The time on draft, target, network and orchestrator: on the critical path, and hidden."""
    on_path, behind = by_track(critical_path), by_track(hidden)
    rows = [
        (track, on_path[track], f"{_ms(behind[track])} hidden" if behind[track] else "")
        for track in Track
    ]
    return share_table("where time went", "ms", _time_rows(rows, wall_ns), "cyan")


def stages_table(title: str, stages: Mapping[str, int], wall_ns: int) -> RenderableType:
    """Stages by their time, with shares of `wall_ns`; without those that would be 0.0 %."""
    by_time = sorted(stages.items(), key=lambda item: -item[1])
    rows = [
        (key, ns, _STAGES[key].meaning if key in _STAGES else "")
        for key, ns in by_time
        if ns >= _SMALLEST_SHARE * wall_ns
    ]
    return share_table(title, "ms", _time_rows(rows, wall_ns), "cyan")


def _time_rows(rows: Iterable[tuple[str, float, str]], wall_ns: int) -> list[Row]:
    return [
        (name, f"{ns / 1e6:.1f}", ns / wall_ns if wall_ns else 0.0, note) for name, ns, note in rows
    ]


def share_table(title: str, amount: str, rows: Iterable[Row], style: str) -> Table:
    """Names, amounts and shares, each with its bar and a note."""
    headings = (
        Column(title, min_width=_NAME_WIDTH),
        Column(amount, justify="right", min_width=8),
        Column("share", justify="right", min_width=len("share")),
        Column("", min_width=_BAR_WIDTH),
        Column("", style="dim"),
    )
    table = Table(*headings, box=None, pad_edge=False, header_style="dim")
    for name, text, share, note in rows:
        table.add_row(name, text, f"{share:.1%}", Text(bar(share, _BAR_WIDTH), style), note)
    return table


def bar(share: float, width: int) -> str:
    """A bar of eighths of a character, `width` characters for a share of 1."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _speed(generation: Generation) -> str:
    latency, usage = generation.latency, generation.usage
    end = _ENDS.get(generation.finish_reason, generation.finish_reason)
    text = (
        f"{usage.num_prompt_tokens} prompt + {usage.num_output_tokens} new tokens "
        f"in {latency.wall_ns / 1e9:.2f} s ({end})\n"
        f"first token after {latency.ttft_ns / 1e6:.0f} ms"
    )
    if latency.tpot_ns:
        text += f", then {_ms(latency.tpot_ns)} a token, {1e9 / latency.tpot_ns:.1f} tokens/s"
    return text


def _speculation(generation: Generation) -> list[RenderableType]:
    """Whose the tokens are, and how the steps with draft tokens went."""
    counts = generation.speculation
    if counts.num_steps == 0:
        return [Text("no draft tokens: the target alone")]
    histogram = list(counts.acceptance_histogram)
    while histogram and histogram[-1] == 0:
        histogram.pop()
    lines = [
        f"with draft tokens: {_counted(counts.num_steps, 'step')}, "
        f"{counts.mean_acceptance_length:.2f} tokens a step",
        f"steps that accepted 0, 1, 2, ...: {' '.join(map(str, histogram))}",
    ]
    if counts.num_predrafted_tokens:
        lines.append(_predrafts(counts))
    if counts.num_pipelined_steps or counts.num_stale_steps:
        lines.append(
            f"verifications sent before the previous result: {counts.num_pipelined_steps} "
            f"in time, {counts.num_stale_steps} stale"
        )
    return [Text(), _sources_table(generation), Text("\n".join(lines))]


def _sources_table(generation: Generation) -> Table:
    """The text's tokens by their source, and how many were drafted for them."""
    counts = generation.speculation
    num_looked_up = counts.num_lookup_accepted_tokens
    rows = (
        ("draft", counts.num_accepted_tokens - num_looked_up,
         counts.num_draft_tokens - counts.num_lookup_draft_tokens),
        ("lookup", num_looked_up, counts.num_lookup_draft_tokens),
    )  # fmt: skip
    headings = (Column(heading, justify="right") for heading in ("accepted", "drafted", "rate"))
    table = Table(
        Column("tokens of", min_width=_NAME_WIDTH),
        *headings,
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for source, num_accepted, num_drafted in rows:
        if num_drafted:
            name = Text("prompt lookup" if source == "lookup" else source, STYLES[source])
            rate = f"{num_accepted / num_drafted:.1%}"
            table.add_row(name, str(num_accepted), str(num_drafted), rate)
    num_own = generation.usage.num_output_tokens - counts.num_accepted_tokens
    table.add_row("target", str(max(0, num_own)), "", "")
    return table


def _predrafts(counts: SpeculationStats) -> str:
    """How often draft tokens were predrafted, and how many of these were accepted."""
    num_steps = counts.num_cache_hits + counts.num_cache_misses
    return (
        f"predrafted tokens: {counts.num_predrafted_tokens}, of which "
        f"{counts.num_cache_hit_accepted_tokens} accepted; cache hits: "
        f"{counts.num_cache_hits} of {_counted(num_steps, 'step')}"
    )


def comparison(speculative: Sequence[Generation], alone: Sequence[Generation]) -> RenderableType:
    """Speculation against the target alone: medians of texts of the same prompt and seed.

    Times to the first token are not comparable: the second text finds its prompt read.
    """
    headings = (Column(heading, justify="right") for heading in ("ms a token", "tokens/s"))
    name = Column("compared", min_width=_NAME_WIDTH)
    table = Table(name, *headings, box=None, pad_edge=False, header_style="dim")
    for way, generations in (("target alone", alone), ("speculative", speculative)):
        tpot_ns = _median_tpot_ns(generations)
        table.add_row(way, f"{tpot_ns / 1e6:.1f}", f"{1e9 / tpot_ns:.1f}" if tpot_ns else "")
    texts = {tuple(generation.token_ids) for generation in (*speculative, *alone)}
    is_same = "yes" if len(texts) == 1 else "NO"
    told = f"speedup {speedup(speculative, alone):.2f}x · same text: {is_same}"
    return Group(table, Text(f"{told} · medians of {len(alone)} texts each, in turn"))


def speedup(speculative: Sequence[Generation], alone: Sequence[Generation]) -> float:
    """Target-only time per output token / speculative time per output token; 0 if unknown."""
    tpot_ns = _median_tpot_ns(speculative)
    return _median_tpot_ns(alone) / tpot_ns if tpot_ns else 0.0


def _median_tpot_ns(generations: Sequence[Generation]) -> float:
    return statistics.median(generation.latency.tpot_ns for generation in generations)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ms(ns: float) -> str:
    return f"{ns / 1e6:.1f} ms"


def terminal() -> Console:
    """Standard output; without colours where it is not a terminal or NO_COLOR is set."""
    return Console(highlight=False, soft_wrap=True)
