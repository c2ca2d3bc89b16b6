"""The server of each of the three services: interceptors, health, reflection, drain."""

import asyncio
import ctypes
import gc
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import uvloop
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2_grpc

from outrider.errors import ConfigurationError, EngineFailed
from outrider.exits import exit_at_once, exit_with_parent
from outrider.observability import logs, telemetry
from outrider.observability.logs import RequestIds
from outrider.protocol.address import check_free, join_host_port
from outrider.protocol.channel import MAX_MESSAGE_BYTES
from outrider.serving.calls import IdleTimeouts, RunningCalls
from outrider.serving.error_interceptors import ErrorInterceptor, OtherServices
from outrider.serving.health import Health
from outrider.serving.reflection import enable_reflection
from outrider.serving.shutdown import Stopped, StopSignals, drain
from outrider.settings.options import DEFAULT_IDLE_SECONDS, ServerOptions

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from outrider.observability.metrics import Metrics

log = logging.getLogger(__name__)

OPTIONS = [
    # Without this, a second server could bind the same port and take half of its calls.
    ("grpc.so_reuseport", 0),
    # Clients ping to notice a frozen peer; the default answers ENHANCE_YOUR_CALM.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A session whose client vanished gives its slot back.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # A prompt for the longest contexts may exceed 4 MB, gRPC's default. Longer ones are refused
    # with a reason.
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]


def start_metrics(
    options: ServerOptions, service_name: str, collect: Callable[[], Iterable["Metric"]]
) -> "Metrics | None":
    """Serves metrics if a port for them is configured, otherwise imports nothing. See `Metrics`.

    Raises:
        ConfigurationError: the port cannot be bound.
    """
    if options.metrics_port is None:
        return None
    from outrider.observability.metrics import Metrics

    metrics = Metrics(collect, service_name)
    port = metrics.serve(options.host, options.metrics_port)
    log.info("metrics at http://%s/metrics", join_host_port(options.host, port))
    return metrics


def interceptors(
    metrics: "Metrics | None",
    calls: RunningCalls,
    service_name: str,
    idle_seconds: float = DEFAULT_IDLE_SECONDS,
) -> list[grpc.aio.ServerInterceptor]:
    """The interceptors of all calls, outermost first. Those that raise are inside of the
    `ErrorInterceptor`.
    """
    return [
        OtherServices(service_name),
        *([metrics.interceptor] if metrics else []),
        *([telemetry.Spans()] if telemetry.is_on() else []),
        RequestIds(),
        ErrorInterceptor(),
        calls,
        IdleTimeouts(idle_seconds),
    ]


class Servicer(Protocol):
    """One of the three services: its RPCs, and these methods."""

    async def check(self) -> None:
        """Raises OutriderError if requests cannot be served now, EngineFailed if never again."""

    async def close(self) -> None:
        """Called when all calls have ended."""

    def metrics(self) -> "Iterable[Metric]":
        """The current values of the service's own metrics."""
        ...


async def serve(
    options: ServerOptions,
    name: str,
    add_to_server: Callable[[Any, grpc.aio.Server], None],
    servicer: Servicer,
    load: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """Serves until SIGINT or SIGTERM, then drains.

    The port is bound first, and the health status is NOT_SERVING until `load` returns. Then the
    line `ready host:port` is printed, and the health status follows the servicer's `check`.

    Args:
        name: of the service, without the package.

    Raises:
        ConfigurationError: a port cannot be bound.
        EngineFailed: `check` raised it; the server is not shut down in order.
        Stopped: a signal arrived during `load`.
    """
    service_name = f"outrider.v1.{name}"
    metrics = start_metrics(options, service_name, servicer.metrics)
    calls = RunningCalls()
    around = interceptors(metrics, calls, service_name, options.idle_seconds)
    server = grpc.aio.server(interceptors=around, options=OPTIONS)
    add_to_server(servicer, server)
    health_servicer = Health(service_name)
    await health_servicer.set_serving(False)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    channelz.add_channelz_servicer(server)
    enable_reflection(server, [service_name, health.SERVICE_NAME])
    bound = _bind(server, options.host, options.port)
    signals = StopSignals()
    await server.start()
    drain_seconds = 0.0
    try:
        await signals.interrupt(load())
        # Objects that exist now stay: with torch loaded, searching them for garbage stops the
        # interpreter for a quarter of a second.
        gc.collect()
        gc.freeze()
        _trim_heap()
        await health_servicer.set_serving(True)
        print(f"ready {join_host_port(options.host, bound)}", flush=True)
        drain_seconds = options.drain_seconds
        with suppress(Stopped):
            await signals.interrupt(health_servicer.follow(servicer.check))
    except EngineFailed:
        drain_seconds = 0.0
        raise
    finally:
        await drain(server, health_servicer, calls, drain_seconds)
    await servicer.close()


def _trim_heap() -> None:
    """Gives freed memory back to the system, half of what loading a model takes (glibc)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    check_free(host, port)  # says the reason, which gRPC would print in words of its own
    address = join_host_port(host, port)
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigurationError(f"cannot listen on {address}") from error


def run(main: Coroutine[Any, Any, None], options: ServerOptions, name: str) -> None:
    """Runs a service until it ends. `name` is the service name in spans. Raises OutriderError."""
    exit_with_parent()
    logs.configure(options.log_format, options.log_level)
    # A waiting handler gets the interpreter ten times earlier than by default,
    # while the engine's thread is busy in Python.
    sys.setswitchinterval(0.0005)
    try:
        telemetry.configure(f"outrider-{name}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
    except Stopped as stopped:
        exit_at_once(stopped.number)
    except EngineFailed as error:  # its thread may hang, so it is not waited for
        print(f"error: {error.message}", file=sys.stderr, flush=True)
        os._exit(1)
    finally:
        main.close()
        telemetry.close()
        # The interpreter's last search for garbage takes seconds with torch loaded.
        gc.freeze()
