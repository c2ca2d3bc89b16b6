"""Reports in the terminal: tokens by their source, and where the time went."""

import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from outrider.client.results import Generation, ServerInfo
from outrider.protocol.messages import ModelInfo, Outage, SpeculationStats, TextPiece

STYLES = {"draft": "green", "target": "bright_white bold"}

_BAR_WIDTH = 30


def legend() -> Text:
    """One line that explains the colours."""
    return Text.assemble(
        ("accepted draft tokens", STYLES["draft"]), " · ", ("the target's own", STYLES["target"])
    )


def show(piece: TextPiece, console: Console) -> None:
    """Writes a piece of text: to a terminal in colour, else unchanged, control characters too."""
    if console.is_terminal:
        console.print(Text(piece.text, STYLES[piece.source]), end="")
    else:
        console.file.write(piece.text)
        console.file.flush()


def report(generation: Generation) -> RenderableType:
    """The latency report: stages on the critical path, what was hidden, and the counts."""
    latency, failure = generation.latency, generation.draft_failure.removeprefix("the draft: ")
    tables = {"critical path": latency.critical_path, "hidden behind it": latency.hidden}
    return Group(
        *(stages_table(title, each, latency.wall_ns) for title, each in tables.items() if each),
        Text(_speeds(generation)),
        Text(_speculation(generation)),
        *([Text(f"without the draft: {failure}", "yellow")] if failure else []),
    )


def stages_table(title: str, stages: dict[str, int], wall_ns: int) -> Table:
    """Stages by their time, each with its share of `wall_ns`."""
    by_time = sorted(stages.items(), key=lambda item: -item[1])
    rows = [(stage, f"{ns / 1e6:.1f}", ns / wall_ns if wall_ns else 0.0) for stage, ns in by_time]
    return share_table(title, "ms", rows, "cyan")


def share_table(
    title: str, amount: str, rows: Iterable[tuple[str, str, float]], style: str
) -> Table:
    """Names, amounts and shares, each with its bar."""
    headings = (
        Column(title, min_width=18),
        Column(amount, justify="right", min_width=9),
        Column("share", justify="right"),
    )
    table = Table(*headings, "", box=None, pad_edge=False, header_style="dim")
    for name, text, share in rows:
        table.add_row(name, text, f"{share:.1%}", Text(bar(share), style))
    return table


def bar(share: float, width: int = _BAR_WIDTH) -> str:
    """A bar of eighths of a character, `width` characters for a share of 1."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _speeds(generation: Generation) -> str:
    latency, usage = generation.latency, generation.usage
    speed = f", {1e9 / latency.tpot_ns:.1f} tokens/s" if latency.tpot_ns else ""
    return (
        f"{usage.num_prompt_tokens} prompt + {usage.num_output_tokens} new tokens in "
        f"{latency.wall_ns / 1e9:.2f} s · first token {latency.ttft_ns / 1e6:.0f} ms · "
        f"{latency.tpot_ns / 1e6:.1f} ms a token{speed} · {generation.finish_reason}"
    )


def _speculation(generation: Generation) -> str:
    counts = generation.speculation
    if counts.num_steps == 0:
        return "no speculation: the target alone"
    text = (
        f"{counts.num_accepted_tokens} of {counts.num_draft_tokens} draft tokens accepted "
        f"({counts.draft_acceptance_rate:.1%}) in {counts.num_steps} steps · "
        f"{counts.mean_acceptance_length:.2f} tokens a step · "
        f"accepted 0, 1, 2, ...: {counts.acceptance_histogram}"
    )
    if counts.num_lookup_steps:
        text += (
            f"\n{counts.num_lookup_steps} steps looked their draft up in the text "
            f"({counts.num_lookup_accepted_tokens} of {counts.num_lookup_draft_tokens} "
            "tokens accepted)"
        )
    if counts.num_predrafted_tokens:
        text += f"\n{_cache_hits(counts)}"
    if counts.num_pipelined_steps or counts.num_stale_steps:
        text += (
            f"\n{counts.num_pipelined_steps} verifications were pipelined · "
            f"{counts.num_stale_steps} others were stale"
        )
    return text


def _cache_hits(counts: SpeculationStats) -> str:
    """How often draft tokens were predrafted, and how many of these were accepted."""
    num_hits, on_hits = counts.num_cache_hits, counts.num_cache_hit_accepted_tokens
    num_misses = counts.num_cache_misses
    on_misses = counts.num_accepted_tokens - counts.num_lookup_accepted_tokens - on_hits
    parts = [f"{num_hits} of {num_hits + num_misses} steps were cache hits"]
    if num_hits:
        parts.append(f"{1 + on_hits / num_hits:.2f} tokens a step")
    if num_misses:
        parts.append(f"{1 + on_misses / num_misses:.2f} on the others")
    parts.append(f"of {counts.num_predrafted_tokens} tokens predrafted, {on_hits} were accepted")
    return " · ".join(parts)


def comparison(speculative: Sequence[Generation], alone: Sequence[Generation]) -> RenderableType:
    """Speculation against the target alone: medians of texts of the same prompt and seed.

    Times to the first token are not comparable: the second text finds its prompt read.
    """
    headings = (Column(heading, justify="right") for heading in ("ms a token", "tokens/s"))
    table = Table("", *headings, box=None, pad_edge=False, header_style="dim")
    for name, generations in (("target alone", alone), ("with draft", speculative)):
        tpot_ns = _median_tpot_ns(generations)
        speed = f"{1e9 / tpot_ns:.1f}" if tpot_ns else ""
        table.add_row(name, f"{tpot_ns / 1e6:.1f}", speed)
    texts = {tuple(generation.token_ids) for generation in (*speculative, *alone)}
    result = "the same tokens" if len(texts) == 1 else "DIFFERENT tokens"
    told = f"speedup {speedup(speculative, alone):.2f}x, {result}"
    return Group(table, Text(f"{told} · medians of {len(alone)} texts each, in turn"))


def speedup(speculative: Sequence[Generation], alone: Sequence[Generation]) -> float:
    """Target-only time per output token / speculative time per output token; 0 if unknown."""
    tpot_ns = _median_tpot_ns(speculative)
    return _median_tpot_ns(alone) / tpot_ns if tpot_ns else 0.0


def _median_tpot_ns(generations: Sequence[Generation]) -> float:
    return statistics.median(generation.latency.tpot_ns for generation in generations)


def in_words(info: ServerInfo) -> str:
    """A line for each model: its name, precision and device."""
    draft = "none" if info.draft is None else _model_in_words(info.draft)
    return f"target: {_model_in_words(info.target)}\ndraft: {draft}"


def _model_in_words(model: ModelInfo) -> str:
    threads = f"{model.num_threads} thread{'s' if model.num_threads > 1 else ''}"
    return f"{model.model_id} {model.dtype} ({threads if model.num_threads else model.device})"


_MODEL_ROWS = (
    *(
        "model",
        "dtype",
        "device",
        "threads",
        "context",
        "vocabulary",
        "ends at",
        "slots",
        "tokens held",
    ),
    "bits independent of the pass",
)


def server_table(info: ServerInfo) -> RenderableType:
    """The models that an orchestrator serves, and what it cannot use."""
    models = {"target": info.target} | ({"draft": info.draft} if info.draft else {})
    table = Table("", *models, box=None, pad_edge=False, header_style="dim", title_justify="left")
    table.title = f"Outrider {info.version}"
    for name, *cells in zip(_MODEL_ROWS, *map(_model_cells, models.values()), strict=True):
        table.add_row(name, *cells)
    return Group(table, *([outage(info.draft_outage)] if info.draft_outage else []))


def outage(draft: Outage) -> Text:
    since = datetime.fromtimestamp(draft.since_ms / 1e3).astimezone()
    words = f"no draft since {since:%Y-%m-%d %H:%M:%S %Z}: {draft.reason} (at {draft.address})"
    return Text(words, "yellow")


def _model_cells(model: ModelInfo) -> list[str]:
    return [
        escape(model.model_id),
        model.dtype,
        model.device,
        str(model.num_threads or "-"),
        str(model.max_context_length),
        str(model.vocab_size),
        ", ".join(map(str, model.eos_token_ids)) or "-",
        str(model.num_slots),
        f"{model.num_cached_tokens} of {model.max_cached_tokens}",
        str(model.batch_invariance or "-"),
    ]


def terminal() -> Console:
    """Standard output; without colours where it is not a terminal or NO_COLOR is set."""
    return Console(highlight=False, soft_wrap=True)
