"""The process of the draft service: loads a drafter as configured, and serves it."""

import dataclasses
from pathlib import Path
from typing import Any

from draft_service.drafters.drafting import NUM_RUNNERS_UP
from draft_service.drafters.eagle3 import Eagle3Drafter
from draft_service.drafters.fan_out import measure_step_time
from draft_service.drafters.model import ModelDrafter
from draft_service.drafters.replay import REPLAY, ReplayDrafter, Script
from draft_service.servicer import DraftServicer
from draft_service.settings import DEFAULT_MIN_CONFIDENCE, DEFAULT_NUM_PREDRAFTS
from outrider.embedded import EMBEDDED_DRAFT
from outrider.engine.activity import PassCounts
from outrider.engine.cpu.packed_linear import fbgemm_is_available
from outrider.engine.device import choose_device
from outrider.engine.options import EngineOptions
from outrider.serving.loading import in_own_thread, load_served_model
from outrider.serving.model_service import ServedModel
from outrider.serving.server import run, serve
from outrider.settings.options import ServerOptions
from outrider.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server


def run_draft(
    server: ServerOptions, settings: dict[str, Any], num_predrafts: int, min_confidence: float
) -> None:
    """Serves until SIGINT or SIGTERM. Raises OutriderError.

    Args:
        settings: fields of EngineOptions.
    """
    options = EngineOptions(**settings)
    servicer = DraftServicer()

    async def load() -> None:
        servicer.serve_model(
            *await in_own_thread(lambda: load_drafter(options, num_predrafts, min_confidence))
        )

    register = add_DraftServiceServicer_to_server
    run(serve(server, "DraftService", register, servicer, load), server, "draft")


def load_drafter(
    options: EngineOptions,
    num_predrafts: int = DEFAULT_NUM_PREDRAFTS,
    min_confidence: float = DEFAULT_MIN_CONFIDENCE,
) -> tuple[ServedModel, ModelDrafter]:
    """The drafter for `options.model`, with `num_predrafts` additional slots per session.

    Raises OutriderError.
    """
    name = options.model
    script = Path(name.removeprefix(REPLAY)) if name.startswith(REPLAY) else None
    model = Script.read(script).model if script else name
    if model in ("default", EMBEDDED_DRAFT):
        options, model = _embedded(options), EMBEDDED_DRAFT
    options = dataclasses.replace(
        options,
        model=model,
        slots_per_session=max(1, num_predrafts),
        is_draft=True,
        batch_invariant=False,
    )
    engine, served = load_served_model(options, num_choices=1 + NUM_RUNNERS_UP)
    model_id = name if script else served.info.model_id
    served = dataclasses.replace(served, info=dataclasses.replace(served.info, model_id=model_id))
    step_time = measure_step_time(engine, num_predrafts)
    engine.passes = PassCounts()  # without those of loading
    if script:
        return served, ReplayDrafter(engine, num_predrafts, script, step_time)
    drafter = ModelDrafter if engine.reads_hidden_states is None else Eagle3Drafter
    return served, drafter(engine, num_predrafts, min_confidence, step_time)


def _embedded(options: EngineOptions) -> EngineOptions:
    """Options of the embedded draft: on a CPU int8 by default, in which it is accepted as often."""
    dtype = options.dtype
    if dtype == "auto" and choose_device(options.device).type == "cpu" and fbgemm_is_available():
        dtype = "int8"
    return dataclasses.replace(options, dtype=dtype)
