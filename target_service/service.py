"""The process of the target service: loads a model as configured, and serves it."""

import dataclasses
import os
from typing import Any

from outrider.embedded import resolve_model
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.serving.loading import in_own_thread, load_served_model
from outrider.serving.server import run, serve
from outrider.settings.options import ServerOptions
from outrider.v1.target_pb2_grpc import add_TargetServiceServicer_to_server
from target_service.servicer import TargetServicer
from target_service.verifier import Verifier


def run_target(server: ServerOptions, settings: dict[str, Any]) -> None:
    """Serves until SIGINT or SIGTERM; as a rank other than 0, follows rank 0. Raises OutriderError.

    Args:
        settings: fields of EngineOptions.
    """
    options = EngineOptions(**settings)
    if options.tensor_parallel > 1 and os.environ.get("RANK", "0") != "0":
        return follow(options)
    servicer = TargetServicer()

    async def load() -> None:
        engine, model = await in_own_thread(lambda: load_served_model(options))
        servicer.serve_model(model, Verifier(engine))

    register = add_TargetServiceServicer_to_server
    return run(serve(server, "TargetService", register, servicer, load), server, "target")


def follow(options: EngineOptions) -> None:
    """Takes part in the passes of rank 0, which serves, until it stops. Raises OutriderError."""
    folder = resolve_model(options.model, trust_remote_code=options.trust_remote_code)
    Engine(dataclasses.replace(options, model=folder)).follow()
