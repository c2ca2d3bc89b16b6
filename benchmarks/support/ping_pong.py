"""Bare streams of grpc.aio: what two messages of a step cost without anything of ours around them.

    python -m benchmarks.support.ping_pong ANSWER_BYTES

serves a stream that answers each message with so many bytes, until its standard input ends.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any, Self

import grpc
import uvloop

from outrider.exits import exit_with_parent
from outrider.protocol.channel import open_channel
from outrider.serving.server import OPTIONS

_METHOD = "/bare.Stream/PingPong"


class Streams:
    """A stream to each of two servers, which take turns as draft and target do."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._channels: list[Any] = []

    async def __aenter__(self) -> Self:
        self._channels = [open_channel(grpc.aio, address) for address in self._addresses]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def round_trips(
        self, messages: Sequence[bytes], num_steps: int, pauses: Sequence[float]
    ) -> list[float]:
        """Milliseconds of each pair of ping-pongs, without the pause (in seconds) before each."""
        calls = [channel.stream_stream(_METHOD)() for channel in self._channels]
        times = []
        for _ in range(num_steps):
            spent = 0.0
            for call, message, pause in zip(calls, messages, pauses, strict=True):
                if pause:
                    time.sleep(pause)  # noqa: ASYNC251 (timers of the event loop are too coarse)
                began = time.perf_counter()
                await call.write(message)
                await call.read()
                spent += time.perf_counter() - began
            times.append(1e3 * spent)
        for call in calls:
            call.cancel()
        return times


async def _serve(num_bytes: int) -> None:
    answer = bytes(num_bytes)

    async def ping_pong(requests: Any, context: Any) -> None:
        while await context.read() is not grpc.aio.EOF:
            await context.write(answer)

    server = grpc.aio.server(options=OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(ping_pong)
    service, name = _METHOD[1:].split("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {name: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    exit_with_parent()
    uvloop.run(_serve(int(sys.argv[1])))
