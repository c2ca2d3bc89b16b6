"""What the three servers share: interceptors, health, reflection, drain."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import uvloop
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from outrider import logs, telemetry
from outrider.address import join_host_port
from outrider.channel import MAX_MESSAGE_BYTES
from outrider.config import ServerOptions
from outrider.error_interceptors import ErrorInterceptor, OtherServices
from outrider.errors import ConfigurationError
from outrider.logs import RequestIds
from outrider.processes import exit_with_parent
from outrider.reflection import enable_reflection

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from outrider.metrics import Metrics

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0

OPTIONS = [
    # Without this, a second server binds the same port and takes half of its calls.
    ("grpc.so_reuseport", 0),
    # Clients ping to notice a frozen peer; the default answers ENHANCE_YOUR_CALM.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A session whose client vanished without a word gives its slot back.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # Of the longest contexts a prompt may be more than 4 MB, gRPC's limit. What is too long is
    # refused by us then, with a reason.
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]


def start_metrics(
    options: ServerOptions, service_name: str, collect: Callable[[], Iterable[Metric]]
) -> Metrics | None:
    """Serves metrics if there is a port for them; else nothing is imported. See `Metrics`.

    Raises:
        ConfigurationError: the port cannot be bound.
    """
    if options.metrics_port is None:
        return None
    from outrider.metrics import Metrics

    metrics = Metrics(collect, service_name)
    port = metrics.serve(options.host, options.metrics_port)
    log.info("metrics at http://%s/metrics", join_host_port(options.host, port))
    return metrics


def interceptors(
    metrics: Metrics | None, service_name: str = ""
) -> list[grpc.aio.ServerInterceptor]:
    """What is around every call, the outermost first. Errors become status codes innermost."""
    optional = [metrics.interceptor] if metrics else []
    spans = [telemetry.Spans()] if telemetry.is_on() else []
    return [OtherServices(service_name), *optional, *spans, RequestIds(), ErrorInterceptor()]


async def serve(
    options: ServerOptions,
    service_name: str,
    register: Callable[[grpc.aio.Server], None],
    load: Callable[[], Awaitable[None]],
    close: Callable[[], Awaitable[None]],
    collect: Callable[[], Iterable[Metric]],
) -> None:
    """Serves until SIGINT or SIGTERM, then drains.

    The port is taken first and health says NOT_SERVING until `load` returns;
    then one line `ready host:port` goes to standard output. `collect` gives the
    service's metrics.

    Raises:
        ConfigurationError: a port cannot be bound.
    """
    metrics = start_metrics(options, service_name, collect)
    server = grpc.aio.server(interceptors=interceptors(metrics, service_name), options=OPTIONS)
    register(server)
    healths = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healths, server)
    channelz.add_channelz_servicer(server)
    enable_reflection(server, [service_name, health.SERVICE_NAME])
    names = ["", service_name]
    await _set_health(healths, names, health_pb2.HealthCheckResponse.NOT_SERVING)
    bound = _bind(server, options.host, options.port)
    await server.start()
    try:
        await load()
        stop = _stop_signal()
        await _set_health(healths, names, health_pb2.HealthCheckResponse.SERVING)
        print(f"ready {join_host_port(options.host, bound)}", flush=True)
        await stop.wait()
    finally:
        await healths.enter_graceful_shutdown()
        await server.stop(DRAIN_SECONDS)
        await close()


async def _set_health(
    healths: health.aio.HealthServicer,
    names: Sequence[str],
    status: health_pb2.HealthCheckResponse.ServingStatus,
) -> None:
    for name in names:
        await healths.set(name, status)


def _bind(server: grpc.aio.Server, host: str, port: int) -> int:
    address = join_host_port(host, port)
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {address}: {_bind_reason(host, port)}"
        ) from error


def _bind_reason(host: str, port: int) -> str:
    """gRPC does not say why it could not bind; asking the system again does."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family):
            return "unknown reason"
    except OSError as error:
        return error.strerror or str(error)


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def run(main: Coroutine[Any, Any, None], options: ServerOptions, name: str) -> None:
    """Runs a service to its end. `name` is what its spans are from. Raises OutriderError."""
    exit_with_parent()
    logs.configure(options.log_format, options.log_level)
    # A waiting handler gets the interpreter ten times sooner than by default,
    # while the engine's thread is busy in Python.
    sys.setswitchinterval(0.0005)
    try:
        telemetry.configure(f"outrider-{name}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
    except KeyboardInterrupt:  # while it loads, on a thread that an orderly end would abort
        os._exit(130)
    finally:
        main.close()
