"""The RPCs that draft and target services share: model information and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from outrider.codec import model_info_to_wire
from outrider.errors import ServiceUnavailable, UnsupportedModel
from outrider.messages import ModelInfo
from outrider.v1 import common_pb2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a service tells of itself. Without a tokenizer, `tokenizer_chunks` is empty."""

    info: ModelInfo
    tokenizer_chunks: tuple[bytes, ...] = ()


class ModelServicer:
    """Answers GetModelInfo and GetTokenizer; UNAVAILABLE while `served` is None."""

    served: ServedModel | None = None

    def model_info(self) -> ModelInfo:
        """Raises ServiceUnavailable while the model loads."""
        return self.available(self.served).info

    @staticmethod
    def available(part: T | None) -> T:
        """`part`, which is None while the model loads. Raises ServiceUnavailable then."""
        if part is None:
            raise ServiceUnavailable("the model is still being loaded")
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
        chunks = self.available(self.served).tokenizer_chunks
        if not chunks:
            raise UnsupportedModel("a draft without a model has no tokenizer")
        for chunk in chunks:
            await context.write(common_pb2.GetTokenizerResponse(chunk=chunk))
