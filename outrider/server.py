"""What the three servers share: errors as status codes, health, reflection, drain."""

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
from google.rpc import error_details_pb2, status_pb2
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from outrider import logs, telemetry
from outrider.config import ServerOptions
from outrider.errors import DOMAIN, ConfigurationError, OutriderError
from outrider.logs import REQUEST_ID_KEY, RequestIds, request_id
from outrider.processes import exit_with_parent
from outrider.reflection import enable_reflection

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from outrider.metrics import Metrics

log = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0

_OPTIONS = [
    # Without this, a second server binds the same port and takes half of its calls.
    ("grpc.so_reuseport", 0),
    # Clients ping to notice a frozen peer; the default answers ENHANCE_YOUR_CALM.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A session whose client vanished without a word gives its slot back.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
]


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Maps every exception of our handlers to a status code and `google.rpc.ErrorInfo`.

    The text of an unexpected exception goes to the log, not to the client.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/outrider.v1."):
            return handler
        for kind in ("unary_unary", "unary_stream", "stream_stream"):
            if (behaviour := getattr(handler, kind)) is not None:
                return handler._replace(**{kind: _guarded(behaviour)})
        return handler


def _guarded(behaviour: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except OutriderError as error:
            await _abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception:
            log.exception("a request failed")
            await _abort(context, OutriderError("internal error"))

    return guarded


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: OutriderError) -> None:
    status = status_to_wire(error)
    await context.abort(
        error.code,
        error.message,
        trailing_metadata=(
            ("grpc-status-details-bin", status.SerializeToString()),
            (REQUEST_ID_KEY, request_id.get()),
        ),
    )


def status_to_wire(error: OutriderError) -> status_pb2.Status:
    """An error with its reason and, where there is one, the time after which to try again."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after * 1e3))
        status.details.add().Pack(retry)
    return status


def start_metrics(
    options: ServerOptions, collect: Callable[[], Iterable[Metric]]
) -> Metrics | None:
    """Serves metrics if there is a port for them; else nothing is imported. `collect`: see Metrics.

    Raises:
        ConfigurationError: the port cannot be bound.
    """
    if options.metrics_port is None:
        return None
    from outrider.metrics import Metrics

    metrics = Metrics(collect)
    port = metrics.serve(options.host, options.metrics_port)
    log.info("metrics at http://%s:%d/metrics", options.host, port)
    return metrics


def interceptors(metrics: Metrics | None) -> list[grpc.aio.ServerInterceptor]:
    """What is around every call, the outermost first. Errors become status codes innermost."""
    optional = [metrics.interceptor] if metrics else []
    spans = [telemetry.Spans()] if telemetry.is_on() else []
    return [*optional, *spans, RequestIds(), ErrorInterceptor()]


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
    metrics = start_metrics(options, collect)
    server = grpc.aio.server(interceptors=interceptors(metrics), options=_OPTIONS)
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
        print(f"ready {options.host}:{bound}", flush=True)
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
    try:
        return server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {_bind_reason(host, port)}"
        ) from error


def _bind_reason(host: str, port: int) -> str:
    """gRPC does not say why it could not bind; asking the system again does."""
    try:
        with socket.create_server((host, port)):
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
