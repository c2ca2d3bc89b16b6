"""The common part of the draft and target services: RPCs for model information and tokenizer."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc

from outrider.engine.worker import Worker
from outrider.errors import ModelLoading
from outrider.protocol.codec import model_info_to_wire
from outrider.protocol.messages import ModelInfo
from outrider.v1 import common_pb2

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A service's model, and its tokenizer in chunks of JSON."""

    info: ModelInfo
    tokenizer_chunks: tuple[bytes, ...] = ()


W = TypeVar("W", bound=Worker)


class ModelServicer(Generic[W]):
    """The base class of both servicers. Answers UNAVAILABLE until `serve_model` is called."""

    served: ServedModel | None = None
    worker: W | None = None

    def serve_model(self, model: ServedModel, worker: W) -> None:
        self.served = model
        self.worker = worker

    async def check(self) -> None:
        """Raises ModelLoading while the model loads, EngineFailed if the engine failed."""
        self.available(self.worker).check()

    async def close(self) -> None:
        if self.worker is not None:
            await asyncio.to_thread(self.worker.close)

    def metrics(self) -> "Iterator[Metric]":
        """Metrics for Prometheus; empty while the model is loading."""
        from outrider.serving.model_metrics import model_metrics

        return model_metrics(self.worker)

    def model_info(self) -> ModelInfo:
        """The current model information. Raises ModelLoading while the model is loading."""
        worker = self.available(self.worker)
        return replace(
            self.available(self.served).info,
            num_free_slots=worker.num_free_slots,
            num_threads=worker.scheduler.threads.current,
            num_cached_tokens=worker.scheduler.num_held_tokens,
        )

    @staticmethod
    def available(part: T | None) -> T:
        """Returns `part`. If it is None, the model is still loading: raises ModelLoading."""
        if part is None:
            raise ModelLoading("the model is still being loaded")
        return part

    async def GetModelInfo(
        self,
        request: common_pb2.GetModelInfoRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> common_pb2.GetModelInfoResponse:
        return model_info_to_wire(self.model_info())

    async def GetTokenizer(
        self,
        request: common_pb2.GetTokenizerRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        for chunk in self.available(self.served).tokenizer_chunks:
            await context.write(common_pb2.GetTokenizerResponse(chunk=chunk))
