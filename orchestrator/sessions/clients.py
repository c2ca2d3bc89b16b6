"""Channels to draft and target services."""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from orchestrator.reporting.timeline import Timeline
from orchestrator.sessions.draft_session import DraftSession
from orchestrator.sessions.hidden_state_window import HiddenStateWindow
from orchestrator.sessions.target_session import TargetSession
from outrider import __version__
from outrider.errors import (
    DeadlineExceeded,
    ModelLoading,
    ServiceUnavailable,
    WireVersionMismatch,
    WrongService,
)
from outrider.models.tokenizer_files import from_bytes
from outrider.observability.logs import outgoing_metadata
from outrider.protocol.channel import from_rpc_error, open_channel
from outrider.protocol.codec import model_info_from_wire
from outrider.protocol.messages import WIRE_VERSION, ModelInfo, SamplingParams, TokenizerFiles
from outrider.v1 import common_pb2, draft_pb2_grpc, target_pb2_grpc

log = logging.getLogger(__name__)


class ModelClient:
    """A channel to a draft or target service."""

    service = ""
    """Its name in errors."""
    stub_class: Any

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = open_channel(grpc.aio, address)
        self.stub = self.stub_class(self._channel)

    async def model_info(self, timeout: float) -> ModelInfo:
        """The service's current model information.

        Raises:
            WrongService: the address belongs to another service.
            WireVersionMismatch: the service belongs to an incompatible release.
            OutriderError: it does not answer.
        """
        request = common_pb2.GetModelInfoRequest()
        try:
            response = await self.stub.GetModelInfo(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error, self.service)
            if isinstance(failure, WrongService):
                failure = WrongService(f"{self._where}: {failure.message}")
            raise failure from error
        info = model_info_from_wire(response)
        if info.wire_version != WIRE_VERSION:
            raise WireVersionMismatch(
                f"{self._where} is Outrider {info.version}, with wire version "
                f"{info.wire_version}, and this is Outrider {__version__}, with wire version "
                f"{WIRE_VERSION}: run the same release"
            )
        return info

    @property
    def _where(self) -> str:
        return f"{self.service} at {self.address}"

    async def wait_until_loaded(
        self, wait_seconds: float, waiting: Callable[[ServiceUnavailable], None] = lambda why: None
    ) -> ModelInfo:
        """Waits up to `wait_seconds` for the service to be ready. Raises OutriderError.

        Calls `waiting` with why it still waits, at each try.
        """
        give_up, told = time.monotonic() + wait_seconds, set[str]()
        while True:
            try:
                return await self.model_info(timeout=5.0)
            except (ServiceUnavailable, DeadlineExceeded) as error:
                words = str(error).removeprefix(f"{self.service}: ")
                kind = ModelLoading if isinstance(error, ModelLoading) else ServiceUnavailable
                why = kind(f"{self._where}: {words}")
                if time.monotonic() > give_up:
                    raise why from error
                waiting(why)
                if words not in told:  # once, not at every try: a name has several addresses
                    told.add(words)
                    log.info("waiting for %s: %s", self._where, words)
            await asyncio.sleep(0.5)

    async def tokenizer_files(self) -> TokenizerFiles:
        """Fetches the service's tokenizer. Raises OutriderError."""
        try:
            call = self.stub.GetTokenizer(common_pb2.GetTokenizerRequest())
            return from_bytes(b"".join([response.chunk async for response in call]))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.service) from error

    async def close(self) -> None:
        await self._channel.close()


class DraftClient(ModelClient):
    """Opens sessions on a draft service."""

    service = "the draft"
    stub_class = draft_pb2_grpc.DraftServiceStub

    def open_session(
        self,
        params: SamplingParams,
        draft: ModelInfo,
        target: ModelInfo,
        timeout: float | None,
        timeline: Timeline | None,
        window: HiddenStateWindow | None,
        max_length: int,
    ) -> DraftSession:
        return DraftSession(
            partial(self.stub.Propose, timeout=timeout, metadata=outgoing_metadata()),
            params,
            draft,
            target,
            timeline,
            window,
            max_length,
        )


class TargetClient(ModelClient):
    """Opens sessions on a target service."""

    service = "the target"
    stub_class = target_pb2_grpc.TargetServiceStub

    def open_session(
        self,
        params: SamplingParams,
        target: ModelInfo,
        timeout: float | None,
        timeline: Timeline | None,
        window: HiddenStateWindow | None,
        max_length: int,
    ) -> TargetSession:
        """A session. Its first request fails with VOCABULARY_MISMATCH if the target now serves
        another vocabulary than `target` says."""
        return TargetSession(
            partial(self.stub.Verify, timeout=timeout, metadata=outgoing_metadata()),
            params,
            timeline,
            target.vocabulary_fingerprint,
            window,
            max_length,
        )
