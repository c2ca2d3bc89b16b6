"""Starts the orchestrator: `python -m orchestrator --target ADDRESS --draft ADDRESS`."""

import click

from orchestrator.admission import DEFAULT_MAX_QUEUE_SECONDS, DEFAULT_MAX_QUEUED
from outrider.protocol.address import check_address
from outrider.settings.options import (
    DEFAULT_DRAFT_PORT,
    DEFAULT_ORCHESTRATOR_PORT,
    DEFAULT_TARGET_PORT,
    ServerOptions,
    run_service,
    server_options,
)
from outrider.settings.types import FiniteRange, checked


@click.command("orchestrator")
@server_options(DEFAULT_ORCHESTRATOR_PORT)
@click.option(
    "--target",
    callback=checked(check_address),
    default=f"127.0.0.1:{DEFAULT_TARGET_PORT}",
    show_default=True,
    help="Address of the target service.",
)
@click.option(
    "--draft",
    default=f"127.0.0.1:{DEFAULT_DRAFT_PORT}",
    show_default=True,
    callback=checked(lambda address: address if address == "none" else check_address(address)),
    help="Address of the draft service; 'none' for the target alone.",
)
@click.option(
    "--max-queued",
    type=click.IntRange(min=0),
    default=DEFAULT_MAX_QUEUED,
    show_default=True,
    help="Requests that may wait for a slot of the target; more are refused at once.",
)
@click.option(
    "--max-queue-seconds",
    type=FiniteRange(min=0, max=86_400),
    default=DEFAULT_MAX_QUEUE_SECONDS,
    show_default=True,
    help="How long a request may wait for a slot; one that would wait longer is refused at once.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    help="Tokens that a request may ask for.  [default: as many as the context holds]",
)
def main(
    server: ServerOptions,
    target: str,
    draft: str,
    max_queued: int,
    max_queue_seconds: float,
    max_new_tokens: int | None,
) -> None:
    """Serve the generation API: the loop between draft and target."""
    # Imports gRPC, whose settings are made by now.
    from orchestrator.service import run_orchestrator

    address = None if draft == "none" else draft
    run_orchestrator(server, target, address, max_queued, max_queue_seconds, max_new_tokens)


if __name__ == "__main__":
    run_service(main)
