"""What an orchestrator serves, in words and as a table."""

from datetime import datetime

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from outrider.client.results import ServerInfo
from outrider.protocol.messages import ModelInfo, Outage


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
