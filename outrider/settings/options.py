"""Settings by flag, environment variable or TOML file, under the same names.

`outrider draft --slots 4`, `OUTRIDER_DRAFT_SLOTS=4` and

    [draft]
    slots = 4

mean the same. A flag beats the environment, which beats the file. The file is
`--config FILE`, else $OUTRIDER_CONFIG, else `outrider.toml` in the current folder.
"""

import errno
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click

from outrider.errors import ConfigurationError, OutriderError
from outrider.exits import exit_at_once
from outrider.protocol.address import host_without_brackets
from outrider.settings.sources import ENVIRONMENT_PREFIX, SettingsGroup, config_option
from outrider.settings.types import PORT, THREADS, FiniteRange, checked

DEFAULT_ORCHESTRATOR_PORT = 50051
DEFAULT_DRAFT_PORT = 50052
DEFAULT_TARGET_PORT = 50053

# Less than the 30 seconds that Kubernetes leaves a container.
DEFAULT_DRAIN_SECONDS = 25.0

# A session may be silent while its orchestrator waits for others, or while a draft is idle.
DEFAULT_IDLE_SECONDS = 120.0

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")

# For gRPC and libgomp, when they are loaded. Round trips take six tenths of the time without gRPC's
# event engine. Between two passes, torch's workers leave their cores after half a millisecond.
ENVIRONMENT = {
    "GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener",
    "GOMP_SPINCOUNT": "10000",
}

DTYPES = ("auto", "float32", "bfloat16", "float16")
TARGET_DTYPES = (*DTYPES, "int4")
DRAFT_DTYPES = (*DTYPES, "int8")

# Packages that clients do without.
_OF_SERVICES = ("torch", "transformers", "tokenizers")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where a service listens, and what it logs and measures."""

    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int | None = None
    log_format: str = "text"
    log_level: str = "info"
    drain_seconds: float = DEFAULT_DRAIN_SECONDS
    idle_seconds: float = DEFAULT_IDLE_SECONDS


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """A decorator that adds several options, which `--help` lists in this order."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


drain_option = click.option(
    "--drain-seconds",
    type=FiniteRange(min=0),
    default=DEFAULT_DRAIN_SECONDS,
    show_default=True,
    help="How long calls that run may go on after SIGTERM or Ctrl-C.",
)


def server_options(default_port: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the fields of ServerOptions to a command, which gets them as its first argument."""
    options = together(
        click.option(
            "--host",
            callback=checked(host_without_brackets),
            default="127.0.0.1",
            show_default=True,
            help="Name or IP address to listen on; 0.0.0.0 or :: for all.",
        ),
        click.option(
            "--port",
            type=PORT,
            default=default_port,
            show_default=True,
            help="Port to listen on; 0 picks a free one.",
        ),
        click.option(
            "--metrics-port", type=PORT, help="Port for Prometheus, at --host.  [default: none]"
        ),
        click.option(
            "--log-format", type=click.Choice(LOG_FORMATS), default="text", show_default=True
        ),
        click.option(
            "--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True
        ),
        drain_option,
        click.option(
            "--idle-seconds",
            type=FiniteRange(min=0, min_open=True),
            default=DEFAULT_IDLE_SECONDS,
            show_default=True,
            help="A stream whose client sends and takes nothing for so long is ended.",
        ),
    )

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_options(**settings: Any) -> Any:
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            chosen = {field.name: settings.pop(field.name) for field in fields(ServerOptions)}
            return command(ServerOptions(**chosen), **settings)

        return options(with_options)

    return add


def _check_named(model: str) -> str:
    if not model.strip():
        raise ConfigurationError("a model has a name")
    return model


trust_option = click.option(
    "--trust-remote-code",
    is_flag=True,
    help="Run code that a model's files bring along, and read weights that are pickles.",
)


def run_options(
    prefix: str = "",
    whose: str = "the model",
    default: str | None = None,
    dtypes: Sequence[str] = DTYPES,
) -> Callable[[F], F]:
    """Adds --device, --dtype, --threads, --slots and what slots hold, maybe prefixed."""
    at_least_one = click.IntRange(min=1)
    return together(
        click.option(
            f"--{prefix}device", default=default, help=f"Device of {whose}: auto, cpu, cuda:0."
        ),
        click.option(
            f"--{prefix}dtype",
            type=click.Choice(dtypes),
            default=default,
            help=f"Precision of {whose}; auto takes what the hardware is fast in.",
        ),
        click.option(f"--{prefix}threads", type=THREADS, help=f"CPU threads of {whose}."),
        click.option(
            f"--{prefix}slots",
            type=at_least_one,
            help=f"Concurrent sessions of {whose}; without it, as free memory allows.",
        ),
        click.option(
            f"--{prefix}max-context-length",
            type=at_least_one,
            help=f"Longest sequence of {whose}, in tokens.",
        ),
        click.option(
            f"--{prefix}cached-tokens",
            type=at_least_one,
            help=f"Tokens that all slots of {whose} together may hold, on CPUs; without it, as "
            "many as have room in them.",
        ),
    )


def model_options(dtypes: Sequence[str]) -> Callable[[F], F]:
    """Adds --model, and the options of how to run it."""
    return together(
        click.option(
            "--model",
            default="default",
            show_default=True,
            callback=checked(_check_named),
            help="Hugging Face id, local folder or GGUF file; 'default' is the embedded pair.",
        ),
        run_options(default="auto", dtypes=dtypes),
        click.option(
            "--graphs/--no-graphs",
            default=True,
            show_default=True,
            help="On CUDA, whether short passes are replayed as graphs, which choose tokens, too.",
        ),
        click.option(
            "--adapt-threads/--no-adapt-threads",
            default=True,
            show_default=True,
            help="Whether fewer CPU threads compute while other programs need the cores.",
        ),
        trust_option,
    )


def settings_group(**attributes: Any) -> click.Group:
    """A group whose commands also take their settings from environment and file."""
    return SettingsGroup(
        "outrider",
        params=[config_option()],
        context_settings={"auto_envvar_prefix": ENVIRONMENT_PREFIX},
        **attributes,
    )


def run_service(command: click.Command) -> None:
    """`run_command` for a service, which a signal ends at once until it has a server to drain."""
    _run(command, dict.fromkeys((signal.SIGINT, signal.SIGTERM), exit_at_once))


def run_command(command: click.Command) -> None:
    """Runs a command as if it belonged to `outrider`; SIGTERM interrupts it like Ctrl-C."""
    _run(command, {signal.SIGTERM: signal.default_int_handler})


def _run(command: click.Command, handlers: Mapping[signal.Signals, Callable[..., Any]]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
    group = settings_group()
    group.add_command(command)
    run_group(group, [command.name or "", *sys.argv[1:]])


def run_group(group: click.Group, arguments: Sequence[str] | None = None) -> None:
    """Runs a command of a group; an OutriderError, or a package that a client does without, ends it
    with `error: ...` and status 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may be ASCII
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stdin is None:  # it was closed
        sys.stdin = open(os.devnull)  # noqa: SIM115
    try:
        group.main(arguments, prog_name="outrider")
    except OutriderError as error:
        click.echo(f"error: {error.message}", err=True)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        if error.name not in _OF_SERVICES:
            raise
        click.echo(f"error: {error.name} is not installed; only clients do without it", err=True)
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        click.echo(f"error: cannot write: {error.strerror}", err=True)
        raise SystemExit(1) from None
