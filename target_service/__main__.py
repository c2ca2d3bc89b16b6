"""Starts the target service: `python -m target_service --model ...`."""

import click

from outrider.huge_pages import start_with_huge_pages
from outrider.settings.options import (
    DEFAULT_TARGET_PORT,
    TARGET_DTYPES,
    ServerOptions,
    model_options,
    run_service,
    server_options,
)


@click.command("target")
@server_options(DEFAULT_TARGET_PORT)
@model_options(TARGET_DTYPES)
@click.option("--tensor-parallel", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes of torchrun's that hold the model together.")  # fmt: skip
def main(server: ServerOptions, **model: str | int | None) -> None:
    """Serve the target: the model whose text is generated."""
    # Imports torch, which takes seconds: --help and wrong settings do not wait for it.
    from target_service.service import run_target

    run_target(server, model)


if __name__ == "__main__":
    start_with_huge_pages()
    run_service(main)
