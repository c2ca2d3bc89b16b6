"""A TCP proxy that adds a round-trip time: a distant host on this machine."""

import asyncio
import selectors
import threading
from contextlib import suppress

_PIECE_BYTES = 1 << 16


class DelayingProxy:
    """Forwards connections to `upstream` (host:port), with half of `rtt_seconds` each way.

    Bytes keep their order, and any number may be under way: latency is added, bandwidth is
    not limited. It runs on a separate thread within the `with` block.
    """

    def __init__(self, upstream: str, rtt_seconds: float) -> None:
        self._upstream_host, _, self._upstream_port = upstream.rpartition(":")
        self._delay = rtt_seconds / 2
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._loop = asyncio.SelectorEventLoop(
            # epoll would round each delay up to whole milliseconds.
            selectors.SelectSelector()
        )
        self._stop = asyncio.Event()
        self.address = ""

    def __enter__(self) -> "DelayingProxy":
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())  # and cancels the connections that are left

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stop.wait()
        server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(
                self._upstream_host, self._upstream_port
            )
        except OSError:  # as if there were no listener here either
            writer.transport.abort()
            return
        try:
            await asyncio.gather(
                self._pass_on(reader, far_writer), self._pass_on(far_reader, writer)
            )
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio's streams would log it as an error
        finally:
            writer.close()
            far_writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until its end has been passed on, too."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.create_task(self._deliver(under_way, writer))
        data = b"not yet"
        try:
            while data:
                try:
                    data = await reader.read(_PIECE_BYTES)
                except ConnectionError:
                    data = b""
                under_way.put_nowait((self._loop.time() + self._delay, data))
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        data = b"not yet"
        with suppress(OSError):  # the other side may be gone
            while data:
                due, data = await under_way.get()
                await asyncio.sleep(due - self._loop.time())
                writer.write(data) if data else writer.write_eof()
