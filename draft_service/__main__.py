"""Starts the draft service: `python -m draft_service --model ...`."""

from __future__ import annotations

import asyncio

import click

from draft_service.drafters import Drafter
from draft_service.drafters.model import ModelDrafter
from draft_service.drafters.ngram import NgramDrafter
from draft_service.servicer import DraftServicer
from outrider import __version__
from outrider.config import DEFAULT_DRAFT_PORT, model_options, run_service, server_options
from outrider.engine.model import DEFAULT_MAX_CONTEXT_LENGTH, DEFAULT_NUM_SLOTS, EngineOptions
from outrider.loading import in_own_thread, load_served_model
from outrider.messages import ModelInfo
from outrider.model_service import ServedModel
from outrider.server import run, serve
from outrider.v1.draft_pb2 import DESCRIPTOR
from outrider.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server

# What the embedded pair drafts with: see "The default pair" in the README.
DEFAULT_DRAFTER = "ngram"


@click.command("draft")
@server_options(DEFAULT_DRAFT_PORT)
@model_options
def main(host: str, port: int, **model: str | int | None) -> None:
    """Serve the draft: a small model, or `--model ngram` (prompt lookup)."""
    run(serve_draft(host, port, EngineOptions(**model)))  # type: ignore[arg-type]


async def serve_draft(host: str, port: int, options: EngineOptions) -> None:
    """Loads the drafter and serves it until SIGINT or SIGTERM. Raises OutriderError."""
    servicer = DraftServicer()

    async def load() -> None:
        servicer.serve_model(*await in_own_thread(lambda: load_drafter(options)))

    async def close() -> None:
        if servicer.drafter is not None:
            await asyncio.to_thread(servicer.drafter.close)

    name = DESCRIPTOR.services_by_name["DraftService"].full_name
    await serve(
        host,
        port,
        [name],
        lambda server: add_DraftServiceServicer_to_server(servicer, server),
        load,
        close,
    )


def load_drafter(options: EngineOptions) -> tuple[ServedModel, Drafter]:
    """The drafter that `options.model` names. Raises OutriderError."""
    name = DEFAULT_DRAFTER if options.model == "default" else options.model
    if name != "ngram":
        engine, model = load_served_model(options)
        return model, ModelDrafter(engine)
    num_slots = options.slots or DEFAULT_NUM_SLOTS
    max_context_length = options.max_context_length or DEFAULT_MAX_CONTEXT_LENGTH
    info = ModelInfo(
        model_id=name,
        max_context_length=max_context_length,
        vocab_size=2**32 - 1,
        num_slots=num_slots,
        version=__version__,
    )
    return ServedModel(info), NgramDrafter(num_slots, max_context_length)


if __name__ == "__main__":
    run_service(main)
