"""How traces are configured. What is in them: `tests/system/tools/test_telemetry.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from outrider.errors import ConfigurationError
from outrider.observability import telemetry


def test_off_unless_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    telemetry.configure("outrider-test")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    telemetry.configure("outrider-test")
    assert not telemetry.is_on()
    with telemetry.span("nothing") as span:
        span.set(tokens=1)
        assert telemetry.current_span_id() == 0
    assert telemetry.outgoing_context() == []


def test_an_unknown_exporter_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ConfigurationError, match="zipkin"):
        telemetry.configure("outrider-test")


def test_an_endpoint_turns_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    try:
        telemetry.configure("outrider-test")
        assert telemetry.is_on()
    finally:
        telemetry.use(None)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    yield monkeypatch
    telemetry.close()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "outrider-test"),
        ({"OTEL_SERVICE_NAME": "named"}, "named"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=attributed,zone=a"}, "attributed"),
        (
            {"OTEL_SERVICE_NAME": "named", "OTEL_RESOURCE_ATTRIBUTES": "service.name=attributed"},
            "named",
        ),
    ],
)
def test_the_environment_names_the_service(
    environment: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    for key, value in variables.items():
        environment.setenv(key, value)
    telemetry.configure("outrider-test")
    attributes = telemetry._provider.resource.attributes
    assert attributes["service.name"] == name
    assert attributes.get("zone") == ("a" if "zone" in str(variables) else None)


@pytest.mark.parametrize("signal", ["", "_TRACES"])
def test_a_protocol_other_than_grpc_is_refused_by_name(
    environment: pytest.MonkeyPatch, signal: str
) -> None:
    variable = f"OTEL_EXPORTER_OTLP{signal}_PROTOCOL"
    environment.setenv("OTEL_TRACES_EXPORTER", "otlp")
    environment.setenv(variable, "http/protobuf")
    with pytest.raises(ConfigurationError, match=f"{variable} is 'http/protobuf'; known: grpc"):
        telemetry.configure("outrider-test")
    environment.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    telemetry.configure("outrider-test")
    assert telemetry.is_on()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "::::"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:port"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/no/such/file.pem"),
        ("OTEL_BSP_SCHEDULE_DELAY", "5s"),
    ],
)
def test_what_opentelemetry_would_replace_is_refused_by_name(
    environment: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    environment.setenv("OTEL_TRACES_EXPORTER", "otlp")
    environment.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"^{variable} is '{value}'"):
        telemetry.configure("outrider-test")


@pytest.mark.parametrize("endpoint", ["http://collector", "https://[::1]:4317", "collector:4317"])
def test_endpoints_may_be_urls_or_addresses(environment: pytest.MonkeyPatch, endpoint: str) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    telemetry.configure("outrider-test")
    assert telemetry.is_on()


@pytest.mark.process
@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_PROPAGATORS"])
def test_a_value_that_opentelemetry_does_not_take_is_refused_at_the_start(variable: str) -> None:
    """In a process of its own: OpenTelemetry reads some of them when it is imported."""
    script = "from outrider.observability import telemetry; telemetry.configure('outrider-test')"
    variables = {"OTEL_TRACES_EXPORTER": "otlp", variable: "nonsense"}
    finished = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("outrider.errors.ConfigurationError: an OTEL_* variable")
    assert "nonsense" in last


def test_the_end_does_not_wait_for_a_collector_that_is_away(
    environment: pytest.MonkeyPatch,
) -> None:
    """One that takes the spans at some time, or never."""
    telemetry.configure("outrider-test")
    away = threading.Event()
    provider = telemetry._provider
    assert provider._atexit_handler is None  # which would wait, too
    environment.setattr(provider, "shutdown", away.wait)
    environment.setattr("outrider.observability.telemetry._LONGEST_FLUSH", 0.01)
    telemetry.close()
    assert not telemetry.is_on()
    away.set()
