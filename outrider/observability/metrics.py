"""Prometheus metrics of one service: its RPCs, its process, and its own counts.

Imported only by a service that is asked for metrics.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from outrider.errors import ConfigurationError
from outrider.observability.distribution import Distribution
from outrider.protocol.address import join_host_port
from outrider.protocol.interceptors import Around, Context, Method, telling_the_end

Collect = Callable[[], Iterable[Metric]]

# Seconds that a scrape waits for the event loop.
_SCRAPE_SECONDS = 10.0

# A call is a whole text, or a session: seconds, or minutes.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


# By whether the client streams, and whether the server does.
_KINDS = {(False, False): "unary", (False, True): "server_stream", (True, True): "bidi_stream"}


class Metrics(Collector):
    """One service's metrics, on a separate registry.

    Args:
        collect: returns the service's own metrics, as they are now. Called on the event loop
            that runs when this is created, so that it sees nothing half done.
        service_name: full name of the service, whose methods have their counters from the start.
    """

    def __init__(self, collect: Collect, service_name: str | None = None) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.interceptor = RpcMetrics(self.registry, service_name)
        self._collect = collect
        self._loop = asyncio.get_running_loop()
        self.registry.register(self)

    def serve(self, host: str, port: int) -> int:
        """Serves them at http://HOST:PORT/metrics; returns the port.

        Raises:
            ConfigurationError: the port cannot be bound.
        """
        try:
            server, _ = start_http_server(port, host, self.registry)
        except OSError as error:
            raise ConfigurationError(
                f"cannot serve metrics on {join_host_port(host, port)}: {error.strerror or error}"
            ) from error
        return int(server.server_port)

    def collect(self) -> Iterable[Metric]:
        """Called on a thread of the HTTP server."""
        return asyncio.run_coroutine_threadsafe(self._on_loop(), self._loop).result(_SCRAPE_SECONDS)

    async def _on_loop(self) -> list[Metric]:
        return list(self._collect())

    def describe(self) -> Iterable[Metric]:
        return []  # else registering would collect, too early


class RpcMetrics(Around):
    """Counts and times calls, under the names and labels of grpc-ecosystem's middleware.

    The counters of all methods of `service_name` are there from the start, since a rate misses the
    first value of a series.
    """

    def __init__(self, registry: CollectorRegistry, service_name: str | None) -> None:
        labels = ["grpc_type", "grpc_service", "grpc_method"]
        self._started = Counter(
            "grpc_server_started", "RPCs started on the server.", labels, registry=registry
        )
        self._handled = Counter(
            "grpc_server_handled",
            "RPCs completed on the server, whatever became of them.",
            [*labels, "grpc_code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time until an RPC was completed; a stream's is that of a session.",
            labels,
            buckets=_SECONDS,
            registry=registry,
        )
        self._received = Counter(
            "grpc_server_msg_received",
            "Messages that clients sent; a stream has any number.",
            labels,
            registry=registry,
        )
        self._sent = Counter(
            "grpc_server_msg_sent", "Messages sent to clients.", labels, registry=registry
        )
        pool = descriptor_pool.Default()
        for method in pool.FindServiceByName(service_name).methods if service_name else ():
            kind = _KINDS[method.client_streaming, method.server_streaming]
            for metric in (self._started, self._seconds, self._received, self._sent):
                metric.labels(kind, service_name, method.name)
            for code in grpc.StatusCode:
                self._handled.labels(kind, service_name, method.name, code_name(code.name))

    @contextmanager
    def around(self, method: Method, context: Context) -> Iterator[None]:
        labels = (method.kind, method.service, method.name)
        self._started.labels(*labels).inc()
        began = time.perf_counter()

        def tell(code: grpc.StatusCode) -> None:
            self._handled.labels(*labels, code_name(code.name)).inc()
            self._seconds.labels(*labels).observe(time.perf_counter() - began)

        with telling_the_end(context, tell):
            yield

    def around_messages(self, method: Method, handler: Any) -> Any:
        labels = (method.kind, method.service, method.name)
        return handler._replace(
            request_deserializer=_counted(
                handler.request_deserializer, self._received.labels(*labels)
            ),
            response_serializer=_counted(handler.response_serializer, self._sent.labels(*labels)),
        )


def _counted(convert: Callable[[Any], Any], counter: Counter) -> Callable[[Any], Any]:
    def counted(message: Any) -> Any:
        counter.inc()
        return convert(message)

    return counted


def code_name(name: str) -> str:
    """A status code as gRPC for Go writes it: "OK", "InvalidArgument", "Canceled"."""
    if name == "OK":
        return name
    return "".join(part.capitalize() for part in name.split("_")).replace("Cancelled", "Canceled")


def histogram(
    name: str,
    text: str,
    distributions: Mapping[str, Distribution],
    unit: float,
    label: str | None = None,
) -> HistogramMetricFamily:
    """A histogram of each distribution, by the value of `label`; values are divided by `unit`."""
    family = HistogramMetricFamily(name, text, labels=[label] if label else [])
    for value, distribution in distributions.items():
        bounds = [str(bound / unit) for bound in distribution.bounds]
        sums = map(float, accumulate(distribution.counts))
        buckets = list(zip([*bounds, "+Inf"], sums, strict=True))
        family.add_metric([value] if label else [], buckets, distribution.total / unit)
    return family
