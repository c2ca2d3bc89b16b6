"""`outrider top`: the activity of an orchestrator, live in the terminal."""

import os
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import zip_longest

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from outrider.cli.report import share_table, stages_table, terminal, tracks_table
from outrider.cli.server_report import outage
from outrider.client.client import Client
from outrider.client.results import ServerActivity, ServerInfo
from outrider.errors import OutriderError
from outrider.protocol.address import check_address
from outrider.protocol.messages import ModelInfo
from outrider.settings.options import DEFAULT_ORCHESTRATOR_PORT
from outrider.settings.types import FiniteRange, checked


@click.command("top")
@click.option(
    "--address",
    default=f"127.0.0.1:{DEFAULT_ORCHESTRATOR_PORT}",
    show_default=True,
    callback=checked(check_address),
    help="An orchestrator.",
)
@click.option(
    "--interval",
    type=FiniteRange(min=0.01, max=86_400),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Print what one interval shows, and end.")
def top(address: str, interval: float, once: bool) -> None:
    """Watch an orchestrator: requests, speed, acceptance, and where the time goes."""
    console = terminal()
    with Client(address) as client:
        first = client.info()
        if once or not console.is_terminal:
            time.sleep(interval)
            console.print(frame(first, client.info()))
        else:
            _watch(console, client, first, interval)


def _watch(console: Console, client: Client, before: ServerInfo, interval: float) -> None:
    """Shows frames until q or Ctrl-C; an orchestrator that does not answer may come back."""
    shown = frame(before, before)
    with (
        suppress(KeyboardInterrupt),
        _single_keys(),
        Live(shown, console=console, screen=True, auto_refresh=False) as live,
    ):
        live.refresh()
        while not _quits(interval):
            try:
                now = client.info()
                shown, before = frame(before, now), now
                live.update(shown, refresh=True)
            except OutriderError as error:
                live.update(Group(shown, Text(error.message, "red")), refresh=True)


def _quits(seconds: float) -> bool:
    """Whether q was pressed within `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if not sys.stdin.isatty():
            time.sleep(left)
        elif select.select([sys.stdin], [], [], left)[0]:
            keys = os.read(sys.stdin.fileno(), 64)
            if not keys or b"q" in keys.lower():
                return True
    return False


@contextmanager
def _single_keys() -> Iterator[None]:
    """Delivers keys at once, without echo; restores the terminal afterwards."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # not on Windows
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def frame(before: ServerInfo, now: ServerInfo) -> RenderableType:
    """A frame: what happened between two queries, and the state at the second one."""
    then, activity = before.activity, now.activity
    if activity.uptime_ns < then.uptime_ns or activity.num_ended_requests < then.num_ended_requests:
        # Another process answers.
        then = ServerActivity()
    elapsed_ns = activity.uptime_ns - then.uptime_ns
    return Group(
        _title(now),
        *([outage(now.draft_outage)] if now.draft_outage else []),
        Text(_requests(activity, now)),
        Text(_speed(then, activity, elapsed_ns)),
        Text(),
        _acceptance(then, activity),
        Text(),
        _time(then, activity),
    )


def _title(info: ServerInfo) -> Text:
    draft = "no draft" if info.draft is None else info.draft.model_id
    uptime = info.activity.uptime_ns // 10**9
    hours, minutes, seconds = uptime // 3600, uptime // 60 % 60, uptime % 60
    return Text.assemble(
        (f"Outrider {info.version}", "bold"),
        f" · {info.target.model_id} with {draft} · up {hours}:{minutes:02}:{seconds:02}",
    )


def _requests(activity: ServerActivity, info: ServerInfo) -> str:
    slots = [f"{_taken(info.target)} target"]
    if info.draft is not None:
        slots.append(f"{_taken(info.draft)} draft")
    return (
        f"{activity.num_running_requests} running, {activity.num_queued_requests} queued, "
        f"{activity.num_ended_requests} ended · slots taken: {', '.join(slots)}"
    )


def _taken(model: ModelInfo) -> str:
    return f"{model.num_slots - model.num_free_slots}/{model.num_slots}"


def _speed(then: ServerActivity, now: ServerActivity, elapsed_ns: int) -> str:
    num_tokens = now.num_output_tokens - then.num_output_tokens
    num_prompt_tokens = now.num_prompt_tokens - then.num_prompt_tokens
    seconds = elapsed_ns / 1e9 or 1.0
    return (
        f"{num_tokens / seconds:.1f} tokens/s · {num_prompt_tokens / seconds:.1f} prompt tokens/s"
        f" · {now.num_output_tokens} tokens since the start"
    )


def _acceptance(then: ServerActivity, now: ServerActivity) -> RenderableType:
    """Acceptance by position in the draft; since the start, if no draft was verified meanwhile."""
    if now.num_steps == 0:
        return Text("no draft tokens yet")
    recent = now.num_steps > then.num_steps
    if not recent:
        then = ServerActivity()
    num_steps = now.num_steps - then.num_steps
    drafted = _difference(now.draft_tokens_by_position, then.draft_tokens_by_position)
    accepted = _difference(now.accepted_tokens_by_position, then.accepted_tokens_by_position)
    predrafted = (now.num_cache_hits - then.num_cache_hits) / num_steps
    looked_up = (now.num_lookup_steps - then.num_lookup_steps) / num_steps
    when = "" if recent else " (since the start)"
    counts = zip(drafted, accepted, strict=True)
    rows = [(str(i), str(all_), taken / all_, "") for i, (all_, taken) in enumerate(counts) if all_]
    table = share_table(f"accepted at position{when}", "drafted", rows, "green")
    summary = (
        f"{sum(accepted) / sum(drafted):.1%} of draft tokens accepted · "
        f"{1 + sum(accepted) / num_steps:.2f} tokens a step · drafts: {predrafted:.1%} predrafted, "
        f"{looked_up:.1%} looked up"
    )
    return Group(table, Text(summary))


def _difference(now: Sequence[int], then: Sequence[int]) -> list[int]:
    return [a - b for a, b in zip_longest(now, then, fillvalue=0)]


def _time(then: ServerActivity, now: ServerActivity) -> RenderableType:
    """The time of all requests; since the start, if nothing ran meanwhile."""
    stages = _spent(then.critical_path, now.critical_path)
    if not stages:
        stages, then = now.critical_path, ServerActivity()
    total_ns = sum(stages.values())
    return Group(
        tracks_table(stages, _spent(then.hidden, now.hidden), total_ns),
        Text(),
        stages_table("critical path", stages, total_ns),
    )


def _spent(then: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    spent = {stage: total - then.get(stage, 0) for stage, total in now.items()}
    return {stage: duration_ns for stage, duration_ns in spent.items() if duration_ns > 0}
