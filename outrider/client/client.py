"""The client library: `Client("localhost:50051").generate("...").text`."""

import asyncio
import math
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Unpack

import grpc

from outrider.client.request import Parameters, Prompt, request_to_wire
from outrider.client.results import (
    Generation,
    ServerInfo,
    generation_from_wire,
    server_info_from_wire,
)
from outrider.client.stream import AsyncGenerationStream, GenerationStream, own_errors
from outrider.errors import ClientMisuse, ConfigurationError, InvalidRequest
from outrider.protocol.address import check_address
from outrider.protocol.channel import (
    Metadata,
    Options,
    checked_metadata,
    checked_options,
    open_channel,
)
from outrider.protocol.request_id import REQUEST_ID_KEY, is_request_id
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc as pb_grpc

# A longer timeout means no limit: gRPC adds it to the time of day, which would overflow.
_LONGEST_SECONDS = 10 * 365 * 86400.0


class _Client:
    """The base of both clients: where they connect, and what goes with their calls."""

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Metadata = (),
        options: Options = (),
    ) -> None:
        """Makes a client; it connects at its first call.

        Args:
            address: HOST:PORT, [IPV6]:PORT, or a gRPC name such as dns:///HOST:PORT.
            credentials: for TLS, as of `grpc.ssl_channel_credentials`; None: no encryption.
            metadata: goes with every call: values by key, or pairs of them.
            options: gRPC's channel arguments; they replace Outrider's of the same name.

        Raises:
            ConfigurationError: one of these cannot be used.
        """
        if not isinstance(credentials, grpc.ChannelCredentials | None):
            raise ConfigurationError("credentials must be grpc.ChannelCredentials or None")
        self._address = check_address(address)
        self._credentials = credentials
        self._metadata = checked_metadata(metadata)
        self._options = checked_options(options)
        self._is_closed = False
        self._connect()

    def _connect(self) -> None:
        """Opens a channel, unless that happens at the first call."""

    def _open(self, kind: Any) -> Any:
        """A channel of `kind`: of the module grpc or grpc.aio."""
        return open_channel(kind, self._address, self._credentials, self._options)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClientMisuse("the client is closed: make another one")

    def _call(
        self,
        prompt: Prompt,
        timeout: float | None,
        request_id: str | None,
        parameters: Parameters,
    ) -> tuple[pb.GenerateRequest, dict[str, Any]]:
        """A request, and what goes with its call. Raises InvalidRequest."""
        metadata = self._metadata
        if request_id is not None:
            if not is_request_id(request_id):
                raise InvalidRequest("request_id must be 1 to 128 letters, digits or _.:/+=-")
            metadata = [*metadata, (REQUEST_ID_KEY, request_id)]
        settings = {"timeout": _time_limit(timeout), "metadata": metadata}
        return request_to_wire(prompt, parameters), settings


class Client(_Client, AbstractContextManager["Client"]):
    """A connection to an orchestrator. Thread-safe. Close it, or use it in a `with`."""

    def _connect(self) -> None:
        self._channel = self._open(grpc)
        self._calls = pb_grpc.GenerationServiceStub(self._channel)

    @property
    def _stub(self) -> pb_grpc.GenerationServiceStub:
        self._check_open()
        return self._calls

    def generate(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> Generation:
        """Generates a text and returns it as a whole.

        Args:
            prompt: a text to continue verbatim, or a conversation for the target's chat template:
                `[{"role": "user", "content": "..."}]`.
            timeout: in seconds; None: no limit.
            request_id: the id of this request in the services' logs; None: the server chooses.
            max_new_tokens: ends the text after this many tokens; default 64, or the server's limit.
            temperature: of sampling; default 0: greedy.
            top_k: samples from this many of the most probable tokens; default 0: from all.
            top_p: samples from the smallest set of tokens with this total probability, above 0 and
                up to 1; default 1: from all.
            min_p: samples from tokens with at least this share of the highest probability, 0 to 1;
                default 0: from all.
            seed: of sampling, 0 to 2**64 - 1; default: drawn at random, below 2**53.
            stop_strings: one string, or up to 16, that end the text and are not part of it.
            num_speculative_tokens: draft tokens per step, up to 64, 0: none; default: the server's
                draft policy decides.
            ignore_eos: continues after an EOS token; default False.
            num_predrafts: for how many outcomes of a verification the draft predrafts, up to 64,
                0: none; default: the draft chooses.
            prompt_lookup: copies draft tokens from the text itself, where it repeats; default: only
                if num_speculative_tokens is not given.
            trace: also returns when each service did what; default False.
            continue_final_message: continues the last message, which must be the assistant's,
                instead of starting a new turn; default False.
            chat_template_kwargs: variables for the chat template: `{"enable_thinking": False}`.

        A parameter that is None has its default.

        Raises:
            OutriderError: the request failed; see its subclasses in `outrider.errors`.
            TypeError: there is no such parameter.
        """
        request, settings = self._call(prompt, timeout, request_id, parameters)
        with own_errors():
            response = self._stub.Generate(request, **settings)
        return generation_from_wire(response)

    def stream(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> GenerationStream:
        """Generates a text and yields it piece by piece. Takes the arguments of `generate`.

        If iteration ends early, the call is cancelled when the last reference to the stream is
        dropped, or at the end of a `with`.

        Raises:
            OutriderError: the request cannot be sent; other errors are raised during iteration.
            TypeError: there is no such parameter.
        """
        request, settings = self._call(prompt, timeout, request_id, parameters)
        return GenerationStream(self._stub.GenerateStream(request, **settings))

    def info(self, timeout: float | None = 10.0) -> ServerInfo:
        """The models that the orchestrator serves; `timeout` in seconds. Raises OutriderError."""
        with own_errors():
            response = self._stub.GetServerInfo(
                pb.GetServerInfoRequest(), timeout=_time_limit(timeout), metadata=self._metadata
            )
        return server_info_from_wire(response)

    def close(self) -> None:
        """Cancels all running calls."""
        self._is_closed = True
        self._channel.close()

    def __exit__(self, *exc: object) -> None:
        self.close()


def _time_limit(timeout: float | None) -> float | None:
    """The timeout for gRPC, which takes infinity for no time at all. Raises InvalidRequest."""
    if timeout is None:
        return None
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        seconds = math.nan
    if math.isnan(seconds):
        raise InvalidRequest("timeout must be a number of seconds, or None")
    if seconds > _LONGEST_SECONDS:
        return None
    # Without asyncio, gRPC takes 0 for no limit, and rounds tiny limits up to a millisecond.
    return seconds or -1.0


class AsyncClient(_Client, AbstractAsyncContextManager["AsyncClient"]):
    """`Client` for asyncio, with the same arguments.

    It may be created anywhere. It is bound to the event loop of its first call, and can be used in
    another one only after that loop is closed.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _channel: Any = None

    @property
    def _stub(self) -> Any:
        """Raises ClientMisuse: closed, or not in the client's event loop."""
        self._check_open()
        loop = self._running_loop()
        if self._loop is not loop:
            self._loop, self._channel = loop, self._open(grpc.aio)
            self._calls = pb_grpc.GenerationServiceStub(self._channel)
        return self._calls

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Raises ClientMisuse: there is none, or the client belongs to another one."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ClientMisuse(
                "an AsyncClient is used in a running event loop; Client is for code without one"
            ) from None
        if self._loop not in (None, loop) and not self._loop.is_closed():
            raise ClientMisuse(
                "the client is in use in another event loop: make one client for each"
            )
        return loop

    async def generate(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> Generation:
        """`Client.generate`."""
        request, settings = self._call(prompt, timeout, request_id, parameters)
        with own_errors():
            response = await self._stub.Generate(request, **settings)
        return generation_from_wire(response)

    def stream(
        self,
        prompt: Prompt,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
        **parameters: Unpack[Parameters],
    ) -> AsyncGenerationStream:
        """`Client.stream`."""
        request, settings = self._call(prompt, timeout, request_id, parameters)
        return AsyncGenerationStream(self._stub.GenerateStream(request, **settings))

    async def info(self, timeout: float | None = 10.0) -> ServerInfo:
        """`Client.info`."""
        with own_errors():
            response = await self._stub.GetServerInfo(
                pb.GetServerInfoRequest(), timeout=_time_limit(timeout), metadata=self._metadata
            )
        return server_info_from_wire(response)

    async def close(self) -> None:
        """Cancels all running calls. Raises ClientMisuse in another event loop."""
        loop = self._running_loop()
        self._is_closed = True
        if self._loop is loop:
            await self._channel.close()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
