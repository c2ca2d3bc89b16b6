"""Spans of one request across all three services."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from outrider.observability import telemetry
from outrider.v1 import generation_pb2
from tests.support.system import running_system
from tests.system.texts.test_protocol import all_slots_free

CALLER = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry.use(provider)
    yield exporter
    telemetry.use(None)


def named(spans: tuple[ReadableSpan, ...], name: str) -> list[ReadableSpan]:
    return [span for span in spans if span.name == name]


def parents(spans: list[ReadableSpan]) -> set[int]:
    return {span.parent.span_id for span in spans if span.parent is not None}


def ids(spans: list[ReadableSpan]) -> set[int]:
    return {span.context.span_id for span in spans if span.context is not None}


def number(span: ReadableSpan, name: str) -> int:
    value = (span.attributes or {})[f"outrider.{name}"]
    assert isinstance(value, int)
    return value


async def test_a_request_and_its_steps_in_all_services(
    exporter: InMemorySpanExporter, tiny_models: Callable[..., Path]
) -> None:
    async with running_system(tiny_models("llama"), tiny_models("gpt2", seed=7)) as system:
        exporter.clear()  # of how the services found each other
        request = generation_pb2.GenerateRequest(
            prompt="the cat sat", max_new_tokens=12, ignore_eos=True, num_speculative_tokens=2
        )
        response = await system.generation.Generate(request, metadata=(CALLER,))
        assert await all_slots_free(system)
    spans = exporter.get_finished_spans()
    assert {f"{s.context.trace_id:032x}" for s in spans if s.context} == {CALLER[1][3:35]}

    requests = named(spans, "outrider.v1.GenerationService/Generate")
    assert parents(requests) == {int(CALLER[1][36:52], 16)}
    steps = named(spans, "step")
    assert parents(steps) == ids(requests)
    drafted = [step for step in steps if number(step, "draft_tokens") > 0]
    assert len(drafted) == response.speculation.num_steps > 1
    accepted = sum(number(step, "accepted_tokens") for step in steps)
    assert accepted == response.speculation.num_accepted_tokens

    # A session is part of the request; a message in it is part of its step.
    for service, message in (("Target", "verify"), ("Draft", "propose")):
        method = "Verify" if service == "Target" else "Propose"
        sessions = named(spans, f"outrider.v1.{service}Service/{method}")
        assert len(sessions) == 1
        assert parents(sessions) == ids(requests)
        messages = named(spans, message)
        assert parents(messages) <= ids(steps) | ids(named(spans, "prefill")) | ids(requests)
        assert ids(drafted) <= parents(messages)
    assert parents(named(spans, "verify")) == ids(steps) | ids(named(spans, "prefill"))


async def test_a_trace_that_is_not_sampled_costs_no_spans(
    tiny_models: Callable[..., Path],
) -> None:
    telemetry.use(TracerProvider(sampler=ALWAYS_OFF))
    try:
        async with running_system(tiny_models("llama"), tiny_models("llama")) as system:
            response = await system.generate("the cat sat", max_new_tokens=4, ignore_eos=True)
        with telemetry.span("one"):
            assert telemetry.current_span_id() == 0
    finally:
        telemetry.use(None)
    assert len(response.token_ids) == 4
