"""`outrider generate`: a text as it is generated, then the report about it."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from json import dumps
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console

from outrider.cli import report
from outrider.cli.idle_draft import why_idle
from outrider.cli.local_pair import check_not_given, local_pair, pair_options, progress
from outrider.cli.pages.request import record
from outrider.cli.perfetto import write_trace
from outrider.client.client import Client
from outrider.client.request import Prompt
from outrider.client.results import Generation, ServerInfo
from outrider.errors import InvalidRequest, ModelLoading, OutriderError
from outrider.protocol.address import check_address
from outrider.protocol.messages import MAX_NUM_PREDRAFTS, MAX_NUM_SPECULATIVE_TOKENS
from outrider.settings.types import WHOLE_TEXT, FiniteRange, checked


def _writable(context: click.Context, parameter: click.Parameter, file: Any) -> Any:
    """Refuses a file that cannot be written, and does not touch it before there is a trace."""
    if file is not None:
        path = Path(file.name)
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise click.BadParameter(f"cannot write {path}")
    return file


# What a field of the request holds.
_UINT32 = 2**32 - 1


@click.command()
@click.argument("text")
@click.option("--address", callback=checked(check_address),
              help="An orchestrator. Without it, three processes for this call.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(1, _UINT32), help="[default: 64]")
@click.option("--temperature", type=FiniteRange(min=0), default=0.0, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(0, _UINT32), default=0)
@click.option("--top-p", type=FiniteRange(0, 1, min_open=True))
@click.option("--min-p", type=FiniteRange(0, 1), default=0.0)
@click.option("--seed", type=click.IntRange(min=0, max=2**64 - 1))
@click.option(
    "--stop-strings",
    type=WHOLE_TEXT,
    multiple=True,
    help="A string that ends the text; repeatable.",
)
@click.option("--num-speculative-tokens", type=click.IntRange(0, MAX_NUM_SPECULATIVE_TOKENS),
              help="Fixed draft length.")  # fmt: skip
@click.option("--num-predrafts", type=click.IntRange(0, MAX_NUM_PREDRAFTS),
              help="Outcomes to predraft for; 0: sequential.")  # fmt: skip
@click.option("--prompt-lookup/--no-prompt-lookup", default=None,
              help="Drafts from the text itself; on unless their number is fixed.")  # fmt: skip
@click.option("--no-speculation", is_flag=True, help="The target alone.")
@click.option("--ignore-eos", is_flag=True, help="Go on after an end of text.")
@click.option("--raw", is_flag=True, help="Continue the text instead of answering it.")
@click.option(
    "--compare", is_flag=True, help="Then again, by the target alone and with drafts, in turn."
)
@click.option("--json", is_flag=True, help="Print one JSON object, for `outrider report`, too.")
@click.option("--trace", type=click.File("w", lazy=True), callback=_writable,
              help="A file for ui.perfetto.dev: what worked when.")  # fmt: skip
@pair_options
def generate(
    text: str,
    address: str | None,
    raw: bool,
    compare: bool,
    json: bool,
    trace: TextIO | None,
    no_speculation: bool,
    **settings: Any,
) -> None:
    """Answer TEXT ("-" reads it from standard input) and show where the time went."""
    if compare and json:
        raise click.UsageError("--compare and --json exclude each other")
    parameters = {name: settings.pop(name) for name in _REQUEST_PARAMETERS}
    parameters["trace"] = trace is not None
    if no_speculation:
        parameters["num_speculative_tokens"] = 0
    text = sys.stdin.read() if text == "-" else text
    if not text.strip():
        raise InvalidRequest("there is no text to answer")
    with _address(address, settings) as where, Client(where) as client:
        prompt: Prompt = text
        if _info_when_loaded(client).has_chat_template and not raw:
            prompt = [{"role": "user", "content": text}]
        if json:
            stream = client.stream(prompt, **(parameters | {"trace": True}))
            click.echo(dumps(record(text, stream)))
            generation = stream.result
        else:
            console = report.terminal()
            generation = _show(console, client, prompt, parameters)
            judged = [generation]
        if trace is not None:
            write_trace(trace, generation.trace)
        if compare:
            parameters |= {"seed": generation.seed, "trace": False}
            alone, judged = _compared(client, prompt, parameters)
            console.print()
            console.print(report.comparison(judged, alone))
        if not json and (reason := why_idle(judged)):
            console.print()
            console.print(reason, soft_wrap=False)


# How often texts are compared, since they are short and machines busy.
_NUM_COMPARED = 3

_REQUEST_PARAMETERS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "stop_strings",
    "num_speculative_tokens",
    "ignore_eos",
    "num_predrafts",
    "prompt_lookup",
)


@contextmanager
def _address(address: str | None, settings: dict[str, Any]) -> Iterator[str]:
    if address is not None:
        check_not_given(settings, beside="--address")
        yield address
        return
    # One request at a time, and a second slot, since a slot is free only after its last pass.
    settings["slots"] = settings["slots"] or 2
    with local_pair(settings, (0, 0, 0)) as (where, _):
        yield where


def _info_when_loaded(client: Client) -> ServerInfo:
    """What is served. Waits, and says so, while the target's model is being loaded."""
    try:
        return client.info()
    except ModelLoading as error:
        with progress(f"waiting: {error.message}"):
            while True:
                time.sleep(0.5)
                with suppress(ModelLoading):
                    return client.info()


def _streamed(client: Client, prompt: Prompt, parameters: dict[str, Any]) -> Generation:
    """Reads the stream as `_show` does, which takes longer than `Client.generate`."""
    stream = client.stream(prompt, **parameters)
    for _ in stream:
        pass
    return stream.result


def _compared(
    client: Client, prompt: Prompt, parameters: dict[str, Any]
) -> tuple[list[Generation], list[Generation]]:
    """Generates the text several times more, alternately by the target alone and with drafts.

    The first text, which was shown, does not count: a new service is slower.
    """
    alone: list[Generation] = []
    speculative: list[Generation] = []
    what = "comparing with the target alone: round"
    with progress(f"{what} 1 of {_NUM_COMPARED}") as (show, _):
        for number in range(_NUM_COMPARED):
            if number:
                show(f"{what} {number + 1} of {_NUM_COMPARED}")
            alone.append(_streamed(client, prompt, parameters | {"num_speculative_tokens": 0}))
            speculative.append(_streamed(client, prompt, parameters))
    return alone, speculative


def _show(
    console: Console, client: Client, prompt: Prompt, parameters: dict[str, Any]
) -> Generation:
    """Streams the text to the terminal, then the report."""
    if console.color_system is not None and not console.no_color:
        console.print(report.legend())
    stream = client.stream(prompt, **parameters)
    has_begun = False
    try:
        for piece in stream:
            report.show(piece, console)
            has_begun = True
    except OutriderError:
        if has_begun:  # what went wrong gets a line for itself
            console.print()
        raise
    console.print("\n")
    console.print(report.report(stream.result))
    return stream.result
