"""OpenTelemetry spans, where the standard OTEL_* variables ask for them.

Otherwise nothing: OpenTelemetry is not imported, and a span is an empty context.
"""

import dataclasses
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from urllib.parse import urlsplit

import grpc

from outrider import __version__
from outrider.errors import ConfigurationError, install_hint
from outrider.protocol.interceptors import Around, Context, Method, telling_the_end

_EXPORTERS = ("otlp", "console", "none")
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")

_FILES = re.compile(r"OTEL_EXPORTER_OTLP_(TRACES_)?(CERTIFICATE|CLIENT_CERTIFICATE|CLIENT_KEY)")
_NUMBERS = re.compile(r"OTEL_BSP_\w+")

# Seconds for the last spans at the end; without a collector it would take ten.
_LONGEST_FLUSH = 1.0

# The provider and its tracer, once spans are on.
_provider: Any = None
_tracer: Any = None

# Status codes that are the server's fault, by OpenTelemetry's conventions for RPC.
_SERVER_ERRORS = {
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
}


class Span:
    """A span that takes attributes; does nothing without OpenTelemetry."""

    def __init__(self, recorded: Any = None) -> None:
        self._recorded = recorded

    def set(self, **attributes: int | float | str | bool) -> None:
        """Sets the attribute `outrider.NAME` for each argument."""
        if self._recorded is not None:
            for name, value in attributes.items():
                self._recorded.set_attribute(f"outrider.{name}", value)

    def set_fields(self, record: Any) -> None:
        """`set` with the fields of a dataclass, which take longer to list than a span to skip."""
        if self._recorded is not None:
            self.set(**dataclasses.asdict(record))


_NO_SPAN = nullcontext(Span())


def is_on() -> bool:
    return _tracer is not None


def configure(service_name: str) -> None:
    """Turns spans on if OTEL_TRACES_EXPORTER or an OTLP endpoint is set.

    Raises:
        ConfigurationError: an unknown exporter or protocol, a value that OpenTelemetry does
            not accept, or missing packages.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(os.environ.get(name) for name in _ENDPOINTS) else "none"
    )
    if exporter not in _EXPORTERS:
        raise ConfigurationError(
            f"unknown OTEL_TRACES_EXPORTER {exporter!r}; known: {', '.join(_EXPORTERS)}"
        )
    if exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    # The variable for traces goes before the one for all signals.
    protocol = next((name for name in _PROTOCOLS if os.environ.get(name)), None)
    if exporter == "otlp" and protocol and os.environ[protocol] != "grpc":
        raise ConfigurationError(f"{protocol} is {os.environ[protocol]!r}; known: grpc")
    _check_values(os.environ)
    try:
        use(_make_provider(service_name, exporter))
    except ImportError as error:
        raise ConfigurationError(
            f"OpenTelemetry is asked for, but not installed ({error}); {install_hint('telemetry')}"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"an OTEL_* variable has a wrong value: {error}") from error


def _check_values(environment: Mapping[str, str]) -> None:
    """Refuses values that OpenTelemetry would silently replace by others."""
    for name, value in environment.items():
        if not value:
            continue
        if name in _ENDPOINTS and not _is_endpoint(value):
            raise ConfigurationError(f"{name} is {value!r}; write http://HOST:PORT")
        if _FILES.fullmatch(name) and not os.access(value, os.R_OK):
            raise ConfigurationError(f"{name} is {value!r}, which cannot be read")
        if _NUMBERS.fullmatch(name) and not value.strip().isdecimal():
            raise ConfigurationError(f"{name} is {value!r}, which is not a whole number")


def _is_endpoint(value: str) -> bool:
    """Whether it is a URL with http or https, or HOST:PORT."""
    try:
        url = urlsplit(value if "://" in value else f"//{value}")
        return url.scheme in ("", "http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:  # an invalid port
        return False


def _make_provider(service_name: str, exporter: str) -> Any:
    from opentelemetry import propagate  # noqa: F401 (fails here for OTEL_PROPAGATORS, not later)
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    if exporter == "console":
        to: Any = ConsoleSpanExporter(out=sys.stderr)
    else:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        to = OTLPSpanExporter()
    # The environment overrides the name that is given here.
    name = OTELResourceDetector().detect().attributes.get(SERVICE_NAME, service_name)
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(to))
    return provider


def use(provider: Any) -> None:
    """Sends spans to this tracer provider from now on; None turns them off."""
    global _provider, _tracer
    _provider = provider
    _tracer = None if provider is None else provider.get_tracer("outrider", __version__)


def close() -> None:
    """Turns spans off; the last ones are sent if that takes no longer than a second."""
    if _provider is not None:
        flush = threading.Thread(target=_provider.shutdown, daemon=True)
        use(None)
        flush.start()
        flush.join(_LONGEST_FLUSH)


def span(name: str, parent_span_id: int = 0) -> AbstractContextManager[Span]:
    """A span, by default within the current one.

    Args:
        parent_span_id: another parent, of the same trace in another process.
    """
    return _NO_SPAN if _tracer is None else _recorded(name, parent_span_id)


@contextmanager
def _recorded(name: str, parent_span_id: int) -> Iterator[Span]:
    from opentelemetry import trace

    context = None
    if parent_span_id:
        session = trace.get_current_span().get_span_context()
        parent = trace.SpanContext(
            session.trace_id, parent_span_id, True, session.trace_flags, session.trace_state
        )
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
    with _tracer.start_as_current_span(name, context=context) as recorded:
        yield Span(recorded)


def current_span_id() -> int:
    """The current span's id for another process; 0 if it is not recorded."""
    context = _current_context()
    return 0 if context is None or not context.trace_flags.sampled else int(context.span_id)


def current_trace_id() -> str:
    """The current trace's id in hexadecimal; empty without one."""
    context = _current_context()
    return "" if context is None or not context.is_valid else f"{context.trace_id:032x}"


def _current_context() -> Any:
    if _tracer is None:
        return None
    from opentelemetry import trace

    return trace.get_current_span().get_span_context()


def outgoing_context() -> list[tuple[str, str]]:
    """The current trace as metadata: by default W3C's traceparent."""
    if _tracer is None:
        return []
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return list(carrier.items())


class Spans(Around):
    """Puts a span around each call except those of monitors, within the caller's."""

    @contextmanager
    def around(self, method: Method, context: Context) -> Iterator[None]:
        if method.is_quiet:
            yield
            return
        from opentelemetry import propagate, trace

        metadata = context.invocation_metadata() or ()
        with _tracer.start_as_current_span(
            f"{method.service}/{method.name}",
            context=propagate.extract({k: v for k, v in metadata if isinstance(v, str)}),
            kind=trace.SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": method.service,
                "rpc.method": method.name,
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as recorded:

            def tell(code: grpc.StatusCode) -> None:
                recorded.set_attribute("rpc.grpc.status_code", code.value[0])
                if code.name in _SERVER_ERRORS:
                    recorded.set_status(trace.StatusCode.ERROR, code.name)

            with telling_the_end(context, tell):
                yield
