"""Runs the three services on this machine, and the options for that."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from outrider.cli.processes import ServiceProcess, running_system
from outrider.cores import available_cores
from outrider.settings.options import (
    DRAFT_DTYPES,
    TARGET_DTYPES,
    run_options,
    together,
    trust_option,
)
from outrider.settings.sources import CONFIG_FILE

_EMBEDDED_TARGETS = (None, "default", "smollm2-135m-instruct")

_ENOUGH_CORES = 4

_RUN_SETTINGS = ("device", "dtype", "threads", "slots", "max_context_length", "cached_tokens")


def hand_on_config_file(context: click.Context) -> None:
    """Lets services read the configuration file of this command."""
    if config := context.meta.get(CONFIG_FILE):
        os.environ["OUTRIDER_CONFIG"] = config


pair_options = together(
    click.option("--target", help="Target model.  [default: the embedded pair's]"),
    click.option(
        "--draft",
        help="Draft model, or 'none'.  [default: the embedded pair's; none for another target]",
    ),
    run_options(whose="both models"),
    run_options("target-", "the target", dtypes=TARGET_DTYPES),
    run_options("draft-", "the draft", dtypes=DRAFT_DTYPES),
    trust_option,
)
"""--target and --draft, and the options of how to run each of them or both."""


@contextmanager
def local_pair(
    settings: dict[str, Any],
    ports: tuple[int, int, int],
    host: str = "127.0.0.1",
    drain_seconds: float = 0.0,
) -> Iterator[tuple[str, list[ServiceProcess]]]:
    """Runs the three services by `pair_options`; shows on standard error what is loading."""
    hand_on_config_file(click.get_current_context())
    if settings["draft"] is None and settings["target"] not in _EMBEDDED_TARGETS:
        settings["draft"] = "none"  # the embedded draft fits the embedded target only
    target, draft = (_model_settings(settings, role) for role in ("target", "draft"))
    has_draft = settings["draft"] != "none"
    if has_draft:
        share_cores(target, draft)
    orchestrator_port, draft_port, target_port = ports
    with (
        progress("starting the services") as (show, stop),
        running_system(
            {**target, "port": target_port},
            {**draft, "port": draft_port} if has_draft else None,
            {"host": host, "port": orchestrator_port},
            lambda what: show(f"loading {what}"),
            drain_seconds,
        ) as system,
    ):
        stop()
        yield system


@contextmanager
def progress(begin: str) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Functions that show progress, and that end it: a line of standard error that changes.

    Without a terminal each step is a new line.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(begin) as status:
            yield status.update, status.stop
    else:
        click.echo(begin, err=True)
        yield lambda what: click.echo(what, err=True), lambda: None


def _model_settings(settings: dict[str, Any], role: str) -> dict[str, Any]:
    """Flags of the draft or target service; its own settings override those for both."""
    own = {name: settings[f"{role}_{name}"] for name in _RUN_SETTINGS}
    chosen = {name: settings[name] if value is None else value for name, value in own.items()}
    return {
        "model": settings[role],
        "trust_remote_code": settings["trust_remote_code"],
        **chosen,
    }


def share_cores(target: dict[str, Any], draft: dict[str, Any]) -> None:
    """Gives each model separate cores, if there are enough and no number was asked for.

    They work at the same time, and two pools of threads on the same cores wait for each
    other at every operation. But of two or three cores, one costs the target more than the draft
    brings: the target has all of them then, and the policy decides when the draft is active.
    """
    num_cores = available_cores()
    if draft["threads"] is None:
        draft["threads"] = max(1, min(num_cores - (target["threads"] or 0), num_cores // 4))
    if target["threads"] is None:
        left = num_cores - (draft["threads"] if num_cores >= _ENOUGH_CORES else 0)
        target["threads"] = max(1, left)


def check_not_given(settings: Iterable[str], beside: str) -> None:
    """Raises UsageError if one of these options was given."""
    context = click.get_current_context()
    for name in settings:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            flag = name.replace("_", "-")
            raise click.UsageError(
                f"--{flag} is for services that this command starts; with {beside} it starts none"
            )
