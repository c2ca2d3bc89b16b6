"""The `outrider` command."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from json import dumps
from typing import Any, TextIO

import click
from rich.console import Console, RenderableType

from outrider import __version__
from outrider.cli import report
from outrider.cli.html_report import report as make_report
from outrider.cli.local_pair import check_not_given, hand_on_config_file, local_pair, pair_options
from outrider.cli.pages.request import record
from outrider.cli.perfetto import write_trace
from outrider.cli.processes import SAFELY
from outrider.cli.top import top
from outrider.client.client import Client
from outrider.client.request import Prompt
from outrider.client.results import Generation
from outrider.errors import InvalidRequest, OutriderError
from outrider.protocol.address import check_address, dialable, host_without_brackets
from outrider.settings.options import (
    DEFAULT_DRAFT_PORT,
    DEFAULT_ORCHESTRATOR_PORT,
    DEFAULT_TARGET_PORT,
    PORT,
    WHOLE_TEXT,
    checked,
    drain_option,
    run_group,
    settings_group,
)

cli = settings_group(help="Speculative decoding as a gRPC service pair.")
click.version_option(__version__, prog_name="outrider")(cli)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. An OutriderError ends it with `error: ...` and status 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_group(cli, arguments)


def _service_command(name: str, module: str, help: str) -> None:
    """Adds a command that becomes `python -m module` with the same arguments."""

    @cli.command(
        name,
        help=help,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    @click.pass_context
    def run(context: click.Context) -> None:
        hand_on_config_file(context)
        os.execv(sys.executable, [sys.executable, *SAFELY, "-m", module, *context.args])


_service_command("draft", "draft_service", "Serve the draft.")
_service_command("target", "target_service", "Serve the target.")
_service_command("orchestrator", "orchestrator", "Serve the loop and the public API.")
_service_command("distill", "outrider.distill", "Make a draft for a target.")
_service_command("bench", "outrider_bench", "Compare the pair with its baselines.")


@cli.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    callback=checked(host_without_brackets),
    help="The public address.",
)
@click.option(
    "--port", type=PORT, default=DEFAULT_ORCHESTRATOR_PORT, show_default=True, help="Public port."
)
@click.option("--draft-port", type=PORT, default=DEFAULT_DRAFT_PORT, show_default=True)
@click.option("--target-port", type=PORT, default=DEFAULT_TARGET_PORT, show_default=True)
@drain_option
@pair_options
def up(
    host: str, port: int, draft_port: int, target_port: int, drain_seconds: float, **settings: Any
) -> None:
    """Run draft, target and orchestrator on this machine until Ctrl-C."""
    ports = (port, draft_port, target_port)
    chosen = [number for number in ports if number]  # 0 is any free port
    if len(set(chosen)) < len(chosen):
        raise click.UsageError("--port, --draft-port and --target-port must differ")
    try:
        with local_pair(settings, ports, host, drain_seconds) as (address, processes):
            click.echo(f"ready {address}")
            with Client(dialable(address)) as client:
                click.echo(report.in_words(client.info()))
            click.echo(f'next: outrider generate --address {dialable(address)} "What is a heron?"')
            while all(process.poll() is None for process in processes):
                time.sleep(0.2)
            raise next(p for p in processes if p.poll() is not None).failure()
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


@cli.command()
@click.argument("text")
@click.option("--address", callback=checked(check_address),
              help="An orchestrator. Without it, three processes for this call.")  # fmt: skip
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="[default: 64]")
@click.option("--temperature", type=float, default=0.0, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(min=0), default=0)
@click.option("--top-p", type=float)
@click.option("--min-p", type=float, default=0.0)
@click.option("--seed", type=click.IntRange(min=0, max=2**64 - 1))
@click.option(
    "--stop-strings",
    type=WHOLE_TEXT,
    multiple=True,
    help="A string that ends the text; repeatable.",
)
@click.option("--num-speculative-tokens", type=click.IntRange(min=0), help="Fixed draft length.")
@click.option("--num-predrafts", type=click.IntRange(min=0),
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
@click.option("--trace", type=click.File("w", lazy=False, atomic=True),
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
        if not raw and client.info().has_chat_template:
            prompt = [{"role": "user", "content": text}]
        if json:
            stream = client.stream(prompt, **(parameters | {"trace": True}))
            click.echo(dumps(record(text, stream)))
            generation = stream.result
        else:
            console = report.terminal()
            generation = _show(console, client, prompt, parameters)
        if trace is not None:
            write_trace(trace, generation.trace)
        if compare:
            parameters |= {"seed": generation.seed, "trace": False}
            console.print()
            console.print(_comparison(client, prompt, parameters))


# What is compared, and how often, since texts are short and machines busy.
_WAYS: tuple[dict[str, Any], ...] = ({"num_speculative_tokens": 0}, {})
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


def _streamed(client: Client, prompt: Prompt, parameters: dict[str, Any]) -> Generation:
    """Reads the stream as `_show` does, which takes longer than `Client.generate`."""
    stream = client.stream(prompt, **parameters)
    for _ in stream:
        pass
    return stream.result


def _comparison(client: Client, prompt: Prompt, parameters: dict[str, Any]) -> RenderableType:
    """Generates the text several times more, alternately by the target alone and with drafts.

    The first text, which was shown, does not count: a new service is slower.
    """
    pairs = [
        [_streamed(client, prompt, parameters | changes) for changes in _WAYS]
        for _ in range(_NUM_COMPARED)
    ]
    alone, speculative = zip(*pairs, strict=True)
    return report.comparison(speculative, alone)


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


@cli.command()
@click.option(
    "--address",
    default=f"127.0.0.1:{DEFAULT_ORCHESTRATOR_PORT}",
    show_default=True,
    callback=checked(check_address),
    help="An orchestrator.",
)
@click.option("--json", is_flag=True, help="Print one JSON object.")
def info(address: str, json: bool) -> None:
    """Show what an orchestrator serves."""
    with Client(address) as client:
        answer = client.info()
    if json:
        click.echo(dumps(dataclasses.asdict(answer)))
    else:
        report.terminal().print(report.server_table(answer))


cli.add_command(top)
cli.add_command(make_report)
