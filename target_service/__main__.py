"""Starts the target service: `python -m target_service --model ...`."""

from __future__ import annotations

import asyncio
import dataclasses
import os

import click

from outrider.config import (
    DEFAULT_TARGET_PORT,
    ServerOptions,
    model_options,
    run_service,
    server_options,
)
from outrider.embedded import resolve_model
from outrider.engine.model import Engine, EngineOptions
from outrider.errors import ConfigurationError
from outrider.loading import in_own_thread, load_served_model
from outrider.server import run, serve
from outrider.v1.target_pb2 import DESCRIPTOR
from outrider.v1.target_pb2_grpc import add_TargetServiceServicer_to_server
from target_service.servicer import TargetServicer
from target_service.verifier import Verifier


@click.command("target")
@server_options(DEFAULT_TARGET_PORT)
@model_options
@click.option("--tensor-parallel", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes of torchrun's that hold the model together.")  # fmt: skip
def main(server: ServerOptions, **model: str | int | None) -> None:
    """Serve the target: the model whose text this is."""
    options = EngineOptions(**model)  # type: ignore[arg-type]
    if options.tensor_parallel > 1 and os.environ.get("RANK", "0") != "0":
        follow(options)
    else:
        run(serve_target(server, options), server, "target")


def follow(options: EngineOptions) -> None:
    """Runs the passes of rank 0, which serves, until it stops. Raises OutriderError."""
    check(options)
    Engine(dataclasses.replace(options, model=str(resolve_model(options.model)))).follow()


def check(options: EngineOptions) -> None:
    """Raises ConfigurationError for settings that suit no target."""
    if options.dtype == "int8":
        raise ConfigurationError("a model in int8 can only be a draft")


async def serve_target(server: ServerOptions, options: EngineOptions) -> None:
    """Loads the model and serves it until SIGINT or SIGTERM. Raises OutriderError."""
    check(options)
    servicer = TargetServicer()

    async def load() -> None:
        engine, model = await in_own_thread(lambda: load_served_model(options))
        servicer.serve_model(model, Verifier(engine))

    async def close() -> None:
        if servicer.verifier is not None:
            await asyncio.to_thread(servicer.verifier.close)

    name = DESCRIPTOR.services_by_name["TargetService"].full_name
    await serve(
        server,
        name,
        lambda grpc_server: add_TargetServiceServicer_to_server(servicer, grpc_server),
        load,
        close,
        servicer.metrics,
    )


if __name__ == "__main__":
    run_service(main)
