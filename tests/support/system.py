"""The three services on real sockets, inside the test's own process."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
from grpc_health.v1 import health
from prometheus_client.metrics_core import Metric

from draft_service import service
from draft_service.drafters.model import ModelDrafter
from draft_service.servicer import DraftServicer
from orchestrator.servicer import GenerationServicer
from orchestrator.sessions.pair import Pair
from outrider.engine.activity import PassCounts
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.observability.metrics import Metrics
from outrider.serving.calls import RunningCalls
from outrider.serving.loading import load_served_model
from outrider.serving.model_service import ServedModel
from outrider.serving.reflection import enable_reflection
from outrider.serving.server import OPTIONS, interceptors
from outrider.v1 import draft_pb2_grpc, generation_pb2, generation_pb2_grpc, target_pb2_grpc
from outrider_bench.harness.delay import DelayingProxy
from target_service.servicer import TargetServicer
from target_service.verifier import Verifier


@dataclass
class System:
    """Stubs of the running services, and what is behind them; without draft its fields are None."""

    generation: generation_pb2_grpc.GenerationServiceAsyncStub
    draft: Any  # a DraftServiceAsyncStub
    target: target_pb2_grpc.TargetServiceAsyncStub
    drafter: Any  # a ModelDrafter
    verifier: Verifier
    address: str
    draft_address: str | None
    target_address: str
    servicer: GenerationServicer
    metrics: dict[str, Metrics]  # of the target, the draft and the orchestrator

    async def generate(self, prompt: str, **fields: Any) -> generation_pb2.GenerateResponse:
        request = generation_pb2.GenerateRequest(prompt=prompt, **fields)
        return await self.generation.Generate(request)


def options(model: str | Path, **settings: Any) -> EngineOptions:
    defaults = {"dtype": "float32", "device": "cpu", "slots": 4}
    return EngineOptions(str(model), **{**defaults, **settings})


@lru_cache(maxsize=8)
def _loaded(options: EngineOptions, num_choices: int) -> tuple[Engine, ServedModel]:
    return load_served_model(options, lambda what: None, num_choices)


def load_once(
    options: EngineOptions, progress: object = None, num_choices: int = 1
) -> tuple[Engine, ServedModel]:
    """`load_served_model`, whose weights are shared by services of the same options.

    Each has a cache of its own, and has run no passes.
    """
    loaded, served = _loaded(options, num_choices)
    engine = copy.copy(loaded)
    engine.cache = loaded.cache.resized(loaded.cache.num_slots, loaded.max_context_length)
    engine.passes = PassCounts()
    return engine, served


@asynccontextmanager
async def serving(
    register: Callable[[grpc.aio.Server], None],
    metrics: Metrics | None = None,
    address: str = "127.0.0.1:0",
    name: str = "GenerationService",
) -> AsyncIterator[str]:
    """A server as `outrider.serving.server.serve` makes it, on a free port if it may choose.

    Yields its address.
    """
    full_name = f"outrider.v1.{name}"
    around = interceptors(metrics, RunningCalls(), full_name)
    server = grpc.aio.server(interceptors=around, options=OPTIONS)
    register(server)
    enable_reflection(server, [full_name, health.SERVICE_NAME])
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def watched(
    name: str, collect: Callable[[], Iterable[Metric]], metrics: dict[str, Metrics] | None
) -> Metrics | None:
    """A service's metrics, also put into `metrics`; none where that is None."""
    if metrics is None:
        return None
    metrics[name] = Metrics(collect)
    return metrics[name]


@asynccontextmanager
async def running_target(
    target: Path, metrics: dict[str, Metrics] | None = None, **settings: Any
) -> AsyncIterator[tuple[str, Verifier]]:
    engine, model = load_once(options(target, **settings))
    verifier = Verifier(engine)
    servicer = TargetServicer()
    servicer.serve_model(model, verifier)
    try:
        async with serving(
            lambda server: target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server),
            watched("target", servicer.metrics, metrics),
            name="TargetService",
        ) as address:
            yield address, verifier
    finally:
        verifier.close()


@asynccontextmanager
async def running_draft(
    draft: str | Path,
    metrics: dict[str, Metrics] | None = None,
    address: str = "127.0.0.1:0",
    **settings: Any,
) -> AsyncIterator[tuple[str, ModelDrafter]]:
    # Random models are unsure of everything; their proposals are as long as was asked.
    with mock.patch.object(service, "load_served_model", load_once):
        model, drafter = service.load_drafter(options(draft, **settings), min_confidence=0.0)
    servicer = DraftServicer()
    servicer.serve_model(model, drafter)
    try:
        async with serving(
            lambda server: draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server),
            watched("draft", servicer.metrics, metrics),
            address,
            "DraftService",
        ) as bound:
            yield bound, drafter
    finally:
        drafter.close()


@asynccontextmanager
async def running_orchestrator(
    target_address: str, draft_address: str | None, metrics: dict[str, Metrics] | None = None
) -> AsyncIterator[tuple[str, GenerationServicer]]:
    servicer = GenerationServicer()
    servicer.serve_pair(await Pair.connect(target_address, draft_address))
    try:
        async with serving(
            lambda server: generation_pb2_grpc.add_GenerationServiceServicer_to_server(
                servicer, server
            ),
            watched("orchestrator", servicer.metrics, metrics),
        ) as address:
            yield address, servicer
    finally:
        await servicer.pair.close()


@asynccontextmanager
async def running_system(
    target: Path,
    draft: str | Path | None = None,
    draft_dtype: str = "float32",
    target_dtype: str = "float32",
    target_rtt_seconds: float = 0.0,
    **settings: Any,
) -> AsyncIterator[System]:
    """A pair and its orchestrator, from which the target may be so far away."""
    metrics: dict[str, Metrics] = {}
    async with AsyncExitStack() as stack:
        target_address, verifier = await stack.enter_async_context(
            running_target(target, metrics, **{"dtype": target_dtype, **settings})
        )
        if target_rtt_seconds:
            proxy = stack.enter_context(DelayingProxy(target_address, target_rtt_seconds))
            target_address = proxy.address
        draft_address, drafter = None, None
        if draft is not None:
            draft_address, drafter = await stack.enter_async_context(
                running_draft(draft, metrics, **{"dtype": draft_dtype, **settings})
            )
        address, servicer = await stack.enter_async_context(
            running_orchestrator(target_address, draft_address, metrics)
        )
        channels = {
            a: await stack.enter_async_context(grpc.aio.insecure_channel(a))
            for a in (address, draft_address, target_address)
            if a is not None
        }
        yield System(
            generation_pb2_grpc.GenerationServiceStub(channels[address]),  # type: ignore[arg-type]
            draft_address and draft_pb2_grpc.DraftServiceStub(channels[draft_address]),
            target_pb2_grpc.TargetServiceStub(channels[target_address]),  # type: ignore[arg-type]
            drafter,
            verifier,
            address,
            draft_address,
            target_address,
            servicer,
            metrics,
        )
