"""Settings by flag, environment variable or TOML file, under the same names.

`outrider draft --slots 4`, `OUTRIDER_DRAFT_SLOTS=4` and

    [draft]
    slots = 4

mean the same. A flag beats the environment, which beats the file. The file is
`--config FILE`, else $OUTRIDER_CONFIG, else `outrider.toml` in the current folder.
"""

from __future__ import annotations

import functools
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from outrider.errors import ConfigurationError, OutriderError

DEFAULT_ORCHESTRATOR_PORT = 50051
DEFAULT_DRAFT_PORT = 50052
DEFAULT_TARGET_PORT = 50053

ENVIRONMENT_PREFIX = "OUTRIDER"
DEFAULT_CONFIG_FILE = "outrider.toml"

# Where a command finds the path of the file in its context's `meta`.
CONFIG_FILE = "outrider.config_file"

SECTIONS = (
    "draft",
    "target",
    "orchestrator",
    "up",
    "generate",
    "info",
    "top",
    "report",
    "distill",
    "bench",
)

PORT = click.IntRange(0, 65535)

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")

DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where a service listens, and what it tells of itself."""

    host: str = "127.0.0.1"
    port: int = 0
    metrics_port: int | None = None
    log_format: str = "text"
    log_level: str = "info"


def server_options(default_port: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds the fields of ServerOptions to a command, which gets them as its first argument."""
    options = [
        click.option(
            "--host", default="127.0.0.1", show_default=True, help="Address to listen on."
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
    ]

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_options(**settings: Any) -> Any:
            chosen = {field.name: settings.pop(field.name) for field in fields(ServerOptions)}
            return command(ServerOptions(**chosen), **settings)

        added: Callable[..., Any] = with_options
        for option in reversed(options):
            added = option(added)
        return added

    return add


def model_options(command: F) -> F:
    """Adds --model and what says how to run it."""
    model = click.option(
        "--model",
        default="default",
        show_default=True,
        help="Hugging Face id or local folder; 'default' is the embedded pair.",
    )
    graphs = click.option(
        "--graphs/--no-graphs",
        default=True,
        show_default=True,
        help="On CUDA, whether short passes are replayed as graphs, which choose tokens, too.",
    )
    return model(run_options(default="auto")(graphs(trust_option(command))))


def trust_option(command: F) -> F:
    """Adds --trust-remote-code."""
    add: Callable[[F], F] = click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run code that a model's files bring along, and read weights that are pickles.",
    )
    return add(command)


def run_options(
    prefix: str = "", whose: str = "the model", default: str | None = None
) -> Callable[[F], F]:
    """Adds --device, --dtype, --threads, --slots and --max-context-length, maybe prefixed."""
    at_least_one = click.IntRange(min=1)
    options = [
        click.option(
            f"--{prefix}device", default=default, help=f"Device of {whose}: auto, cpu, cuda:0."
        ),
        click.option(
            f"--{prefix}dtype",
            type=click.Choice(DTYPES),
            default=default,
            help=f"Precision of {whose}; auto takes what the hardware is fast in.",
        ),
        click.option(f"--{prefix}threads", type=at_least_one, help=f"CPU threads of {whose}."),
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
    ]

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def config_option() -> click.Option:
    """`--config FILE` of a group: gives its commands the file's settings as defaults."""
    return click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False),
        envvar=f"{ENVIRONMENT_PREFIX}_CONFIG",
        is_eager=True,
        expose_value=False,
        callback=_apply_file,
        help=f"TOML file with settings.  [default: {DEFAULT_CONFIG_FILE} if there is one]",
    )


def settings_group(**attributes: Any) -> click.Group:
    """A group whose commands take their settings from environment and file, too."""
    settings = {"auto_envvar_prefix": ENVIRONMENT_PREFIX}
    return click.Group(
        "outrider", params=[config_option()], context_settings=settings, **attributes
    )


def run_service(command: click.Command) -> None:
    """Runs a service's command as if it stood in the `outrider` command."""
    group = settings_group()
    group.add_command(command)
    run_group(group, [command.name or "", *sys.argv[1:]])


def run_group(group: click.Group, arguments: Sequence[str] | None = None) -> None:
    """Runs a command; a user's mistake ends it with `error: ...` and status 1."""
    try:
        group.main(arguments, prog_name="outrider")
    except OutriderError as error:
        click.echo(f"error: {error.message}", err=True)
        raise SystemExit(1) from None


def _apply_file(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    path = Path(value or DEFAULT_CONFIG_FILE)
    if value is not None or path.is_file():
        context.default_map = read_file(path, context.command)
        context.meta[CONFIG_FILE] = str(path)


def read_file(path: Path, group: click.Command) -> dict[str, dict[str, Any]]:
    """The settings of a TOML file by command, checked against the commands that are known.

    Raises:
        ConfigurationError: not TOML, or a section or key that means nothing.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    commands = group.commands if isinstance(group, click.Group) else {}
    return {
        name: _read_section(path, name, section, commands.get(name))
        for name, section in document.items()
    }


def _read_section(
    path: Path, name: str, section: Any, command: click.Command | None
) -> dict[str, Any]:
    if name not in SECTIONS or not isinstance(section, dict):
        raise ConfigurationError(f"{path}: unknown section {name!r}; known: {', '.join(SECTIONS)}")
    settings = {key.replace("-", "_"): value for key, value in section.items()}
    known = {parameter.name for parameter in command.params} if command else set()
    # A command without parameters here hands its arguments on to a service,
    # which reads the same file and knows.
    if unknown := sorted(settings.keys() - known) if known else []:
        raise ConfigurationError(f"{path}: unknown key {unknown[0]!r} in section {name!r}")
    return settings
