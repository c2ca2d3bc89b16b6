"""The client library: `Client("localhost:50051").generate("...").text`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypedDict, Unpack

import grpc

from outrider.channel import CHANNEL_OPTIONS, from_rpc_error
from outrider.errors import Cancelled, InvalidRequest
from outrider.generation import Generation, ServerInfo, TextPiece
from outrider.generation_codec import generation_from_wire, piece_from_wire, server_info_from_wire
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc as pb_grpc

Prompt = str | Sequence[Mapping[str, str]]
"""A text to continue, or a conversation: `[{"role": "user", "content": "..."}]`."""


class Parameters(TypedDict, total=False):
    """Fields of GenerateRequest beside the prompt; None is the same as leaving one out."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    num_speculative_tokens: int | None
    ignore_eos: bool | None
    num_branches: int | None
    prompt_lookup: bool | None
    trace: bool | None


def _request(prompt: Prompt, parameters: Parameters) -> pb.GenerateRequest:
    """Raises InvalidRequest for what has no form on the wire, TypeError for unknown names."""
    if unknown := sorted(parameters.keys() - Parameters.__annotations__):
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    known: dict[str, Any] = {k: value for k, value in parameters.items() if value is not None}
    if isinstance(known.get("stop"), str):
        known["stop"] = [known["stop"]]
    try:
        if isinstance(prompt, str):
            return pb.GenerateRequest(prompt=prompt, **known)
        turns = [pb.ChatMessage(role=turn["role"], content=turn["content"]) for turn in prompt]
        return pb.GenerateRequest(messages=turns, **known)
    except KeyError as error:
        raise InvalidRequest(f"a message has no {error}") from error
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"a parameter has no form on the wire: {error}") from error


def _time_limit(timeout: float | None) -> float | None:
    """For calls without asyncio, where gRPC takes 0 for "no limit"."""
    # A limit of almost nothing would not do: it is rounded up to a millisecond.
    return -1.0 if timeout == 0 else timeout


@contextmanager
def _own_errors() -> Iterator[None]:
    """Turns what gRPC raises for a failed call into an OutriderError."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
    except asyncio.CancelledError:
        # gRPC raises it for a call that `close` ended, too. Nobody cancelled the task then.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Cancelled("the stream or the client was closed") from None


class _Stream:
    """What both kinds of streams have in common."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._result: Generation | None = None

    @property
    def result(self) -> Generation:
        """The whole generation. Raises RuntimeError before the stream has ended."""
        if self._result is None:
            raise RuntimeError("the stream has not ended yet")
        return self._result

    def close(self) -> None:
        """Cancels what is left; both services free their slots."""
        self._call.cancel()

    def _pieces(self, message: pb.GenerateStreamResponse) -> list[TextPiece]:
        if message.HasField("result"):
            self._result = generation_from_wire(message.result)
        return [piece_from_wire(piece) for piece in message.pieces]


class GenerationStream(_Stream, Iterator[TextPiece]):
    """Pieces of text as they are committed; `result` afterwards.

    Raises:
        OutriderError: on iteration, whatever ends the call.
    """

    def __init__(self, call: Any) -> None:
        super().__init__(call)
        self._iterator = self._iterate()

    def __next__(self) -> TextPiece:
        return next(self._iterator)

    def _iterate(self) -> Iterator[TextPiece]:
        with _own_errors():
            for message in self._call:
                yield from self._pieces(message)


class AsyncGenerationStream(_Stream):
    """`GenerationStream` for `async for`."""

    async def __aiter__(self) -> AsyncIterator[TextPiece]:
        with _own_errors():
            async for message in self._call:
                for piece in self._pieces(message):
                    yield piece


class Client:
    """Talks to an orchestrator. Thread-safe; close it, or use it in a `with`.

    Keyword parameters of `generate` and `stream` are the fields of GenerateRequest:
    max_new_tokens, temperature, top_k, top_p, min_p, seed, stop,
    num_speculative_tokens (0: the target alone), ignore_eos, num_branches, prompt_lookup and trace.
    `timeout` is in seconds.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = pb_grpc.GenerationServiceStub(self._channel)

    def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **parameters: Unpack[Parameters]
    ) -> Generation:
        """Generates a whole text. Raises OutriderError."""
        request = _request(prompt, parameters)
        with _own_errors():
            response = self._stub.Generate(request, timeout=_time_limit(timeout))
        return generation_from_wire(response)

    def stream(
        self, prompt: Prompt, *, timeout: float | None = None, **parameters: Unpack[Parameters]
    ) -> GenerationStream:
        """Generates piece by piece. Errors are raised on iteration."""
        call = self._stub.GenerateStream(_request(prompt, parameters), timeout=_time_limit(timeout))
        return GenerationStream(call)

    def info(self, timeout: float | None = 10.0) -> ServerInfo:
        """What the orchestrator serves. Raises OutriderError."""
        with _own_errors():
            response = self._stub.GetServerInfo(
                pb.GetServerInfoRequest(), timeout=_time_limit(timeout)
            )
        return server_info_from_wire(response)

    def close(self) -> None:
        """Ends all calls that are under way."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient:
    """`Client` for asyncio."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub: Any = pb_grpc.GenerationServiceStub(self._channel)

    async def generate(
        self, prompt: Prompt, *, timeout: float | None = None, **parameters: Unpack[Parameters]
    ) -> Generation:
        """Generates a whole text. Raises OutriderError."""
        request = _request(prompt, parameters)
        with _own_errors():
            response = await self._stub.Generate(request, timeout=timeout)
        return generation_from_wire(response)

    def stream(
        self, prompt: Prompt, *, timeout: float | None = None, **parameters: Unpack[Parameters]
    ) -> AsyncGenerationStream:
        """Generates piece by piece. Errors are raised on iteration."""
        call = self._stub.GenerateStream(_request(prompt, parameters), timeout=timeout)
        return AsyncGenerationStream(call)

    async def info(self, timeout: float | None = 10.0) -> ServerInfo:
        """What the orchestrator serves. Raises OutriderError."""
        with _own_errors():
            response = await self._stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=timeout)
        return server_info_from_wire(response)

    async def close(self) -> None:
        """Ends all calls that are under way."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
