"""The `outrider` command."""

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from json import dumps
from typing import Any

import click

from outrider import __version__
from outrider.cli import report
from outrider.cli.generate import generate
from outrider.cli.html_report import report as make_report
from outrider.cli.local_pair import hand_on_config_file, local_pair, pair_options
from outrider.cli.processes import SAFELY, ServiceProcess
from outrider.cli.server_report import in_words, server_table
from outrider.cli.top import top
from outrider.client.client import Client
from outrider.protocol.address import check_address, check_free, dialable, host_without_brackets
from outrider.settings.options import (
    DEFAULT_DRAFT_PORT,
    DEFAULT_ORCHESTRATOR_PORT,
    DEFAULT_TARGET_PORT,
    drain_option,
    run_group,
    settings_group,
)
from outrider.settings.types import PORT, checked

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
    for number in chosen:  # which would be noticed after the models have been loaded
        check_free(host if number == port else "127.0.0.1", number)
    try:
        with local_pair(settings, ports, host, drain_seconds) as (address, processes):
            click.echo(f"ready {address}")
            with Client(dialable(address)) as client:
                click.echo(in_words(client.info()))
            click.echo(f'next: outrider generate --address {dialable(address)} "What is a heron?"')
            while True:
                for process in [each for each in processes if each.poll() is not None]:
                    _note_end(process)
                    processes.remove(process)
                time.sleep(0.2)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)


def _note_end(process: ServiceProcess) -> None:
    """Says why a service ended; SystemExit unless the others can go on, as without the draft."""
    reason = process.failure().message
    if process.name == "draft_service":
        click.echo(f"going on with the target alone: {reason}", err=True)
    else:
        click.echo(f"error: {reason}", err=True)
        raise SystemExit(1)


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
        report.terminal().print(server_table(answer))


cli.add_command(generate)
cli.add_command(top)
cli.add_command(make_report)
