"""Starts the draft service: `python -m draft_service --model ...`."""

import click

from draft_service.settings import DEFAULT_MIN_CONFIDENCE, DEFAULT_NUM_PREDRAFTS
from outrider.huge_pages import start_with_huge_pages
from outrider.settings.options import (
    DEFAULT_DRAFT_PORT,
    DRAFT_DTYPES,
    ServerOptions,
    model_options,
    run_service,
    server_options,
)
from outrider.settings.types import FiniteRange


@click.command("draft")
@server_options(DEFAULT_DRAFT_PORT)
@model_options(DRAFT_DTYPES)
@click.option(
    "--num-predrafts",
    type=click.IntRange(min=0),
    default=DEFAULT_NUM_PREDRAFTS,
    show_default=True,
    help="Outcomes of a verification that a session can predraft for, at most.",
)
@click.option(
    "--min-confidence",
    type=FiniteRange(0, 1),
    default=DEFAULT_MIN_CONFIDENCE,
    show_default=True,
    help="A proposal ends where it is less likely than this to be accepted whole; "
    "not a replayed one.",
)
def main(
    server: ServerOptions, num_predrafts: int, min_confidence: float, **model: str | int | None
) -> None:
    """Serve the draft: a small model.

    `--model replay:FILE` proposes recorded texts with a given acceptance rate.
    """
    # Imports torch, which takes seconds: --help and wrong settings do not wait for it.
    from draft_service.service import run_draft

    run_draft(server, model, num_predrafts, min_confidence)


if __name__ == "__main__":
    start_with_huge_pages()
    run_service(main)
