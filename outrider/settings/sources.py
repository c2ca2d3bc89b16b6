"""Sources of settings besides flags: environment variables and a TOML file.

Both are checked, so that a typo is an error instead of a setting without effect, and errors
name the variable, or the file and its key.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from outrider.errors import ConfigurationError
from outrider.exits import EXIT_WITH_PARENT

ENVIRONMENT_PREFIX = "OUTRIDER"
DEFAULT_CONFIG_FILE = "outrider.toml"

_OTHER_VARIABLES = ("OUTRIDER_CONFIG", "OUTRIDER_CACHE", EXIT_WITH_PARENT)

_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP)(_\w+)?$")

# The key of the file's path in a context's `meta`.
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


class SettingsGroup(click.Group):
    """A group whose commands also take settings from the environment and a TOML file."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _naming_the_source():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _naming_the_source():
            return super().invoke(ctx)


@contextmanager
def _naming_the_source() -> Iterator[None]:
    """Adds the source to errors of values that do not come from flags."""
    try:
        yield
    except click.BadParameter as error:
        if error.ctx is not None and error.param is not None and error.param.name is not None:
            source = error.ctx.get_parameter_source(error.param.name)
            if source is ParameterSource.ENVIRONMENT:
                error.param_hint = variable_of(error.param, error.ctx)
            elif source is ParameterSource.DEFAULT_MAP:
                file = error.ctx.meta[CONFIG_FILE]
                error.param_hint = f"{error.param.name!r} in [{error.ctx.command.name}] of {file}"
        raise


def variable_of(parameter: click.Parameter, context: click.Context) -> str:
    """The environment variable that sets a parameter of a command."""
    return str(parameter.envvar or f"{context.auto_envvar_prefix}_{parameter.name}".upper())


def _known(group: click.Command) -> dict[str, dict[str, click.Parameter]]:
    """Each command's settings by name; none for a command that passes its arguments on.

    Such a command starts a service, which reads the same file and variables and checks them.
    """
    commands = group.commands if isinstance(group, click.Group) else {}
    return {
        name: {parameter.name: parameter for parameter in command.params if parameter.name}
        for name, command in commands.items()
    }


def drop_service_links(environment: MutableMapping[str, str]) -> None:
    """Removes the variables that Kubernetes sets in every pod for a Service named "outrider...".

    For one named "outrider-target" these include OUTRIDER_TARGET_PORT=tcp://...
    """
    for name, value in list(environment.items()):
        is_link = value.startswith(("tcp://", "udp://")) or _SERVICE_LINK.search(name)
        if is_link and name.startswith(f"{ENVIRONMENT_PREFIX}_"):
            del environment[name]


def check_variables(environment: Mapping[str, str], group: click.Command) -> None:
    """Raises ConfigurationError for a variable OUTRIDER_... that sets nothing."""
    known = _known(group)
    for name in environment:
        if not name.startswith(f"{ENVIRONMENT_PREFIX}_") or name in _OTHER_VARIABLES:
            continue
        own_name = name.removeprefix(f"{ENVIRONMENT_PREFIX}_")
        section, _, setting = own_name.lower().partition("_")
        is_elsewhere = not known.get(section)  # the service that the command starts checks it
        if section in SECTIONS and setting and (is_elsewhere or setting in known[section]):
            continue
        names = [f"{s}_{n}".upper() for s in known for n in known[s]]
        close = difflib.get_close_matches(own_name, [*names, "CONFIG", "CACHE"], n=1)
        hint = f"; did you mean {ENVIRONMENT_PREFIX}_{close[0]}?" if close else ""
        raise ConfigurationError(f"unknown environment variable {name}{hint}")


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


def _apply_file(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    drop_service_links(os.environ)
    check_variables(os.environ, context.command)
    path = Path(value or DEFAULT_CONFIG_FILE)
    if value is not None or path.is_file():
        context.default_map = read_file(path, context.command)
        context.meta[CONFIG_FILE] = str(path)


def read_file(path: Path, group: click.Command) -> dict[str, dict[str, Any]]:
    """The settings of a TOML file by command, checked against the commands that are known.

    Raises:
        ConfigurationError: not TOML, or an unknown section or key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return {name: _read_section(path, name, section, group) for name, section in document.items()}


def _read_section(path: Path, name: str, section: Any, group: click.Command) -> dict[str, Any]:
    if name not in SECTIONS:
        raise ConfigurationError(f"{path}: unknown section {name!r}; known: {', '.join(SECTIONS)}")
    if not isinstance(section, dict):
        raise ConfigurationError(f"{path}: {name!r} is a section: [{name}]")
    known = _known(group).get(name)
    settings: dict[str, Any] = {}
    for key, value in section.items():
        setting = key.replace("-", "_")
        if known and setting not in known:
            raise ConfigurationError(f"{path}: unknown key {key!r} in section {name!r}")
        if setting in settings:
            raise ConfigurationError(f"{path}: {setting!r} stands twice in section {name!r}")
        if isinstance(value, list) and (not known or known[setting].multiple):
            settings[setting] = [_as_typed(one, path, name, key) for one in value]
        elif known and known[setting].multiple:
            settings[setting] = [_as_typed(value, path, name, key)]
        else:
            settings[setting] = _as_typed(value, path, name, key)
    return settings


def _as_typed(value: Any, path: Path, section: str, key: str) -> str:
    """A value as it would be typed, so that 1.5 and true are not integers here either."""
    if isinstance(value, str | bool | int | float):
        return str(value)
    raise ConfigurationError(
        f"{path}: {key!r} in section {section!r} must be a text, a number, true or false"
    )
