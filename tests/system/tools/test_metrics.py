"""What Prometheus reads from each of the three services."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from outrider.errors import ConfigurationError
from outrider.observability.metrics import Metrics
from outrider.serving.server import start_metrics
from outrider.settings.options import ServerOptions
from outrider.v1 import generation_pb2, target_pb2
from tests.support.system import System, running_system
from tests.system.texts.test_protocol import all_slots_free

PROMPT = "the cat sat on the mat"
GENERATION = {"grpc_service": "outrider.v1.GenerationService", "grpc_method": "Generate"}


class Scraped:
    """The samples of one scrape over HTTP."""

    def __init__(self, text: str) -> None:
        self.samples = [
            sample for family in text_string_to_metric_families(text) for sample in family.samples
        ]

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name that have these labels, of which there are some."""
        values = [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        assert values, (name, labels)
        return sum(values)


async def scrape(metrics: Metrics) -> Scraped:
    url = f"http://127.0.0.1:{metrics.serve('127.0.0.1', 0)}/metrics"
    return Scraped(await asyncio.to_thread(lambda: urlopen(url, timeout=30).read().decode()))


@pytest.fixture
async def system(tiny_models: Callable[..., Path]) -> AsyncIterator[System]:
    async with running_system(tiny_models("llama"), tiny_models("gpt2", seed=7)) as system:
        yield system


async def test_what_requests_did_is_counted(system: System) -> None:
    response = await system.generate(PROMPT, num_speculative_tokens=3, ignore_eos=True)
    other = await system.generate(PROMPT, max_new_tokens=9, num_speculative_tokens=2)
    value = await scrape(system.metrics["orchestrator"])
    both = (response, other)
    assert value("outrider_output_tokens_total") == sum(len(r.token_ids) for r in both)
    assert value("outrider_prompt_tokens_total") == sum(r.usage.num_prompt_tokens for r in both)
    assert value("outrider_steps_total") == sum(r.speculation.num_steps for r in both)
    predrafted = sum(r.speculation.num_cache_hits for r in both)
    assert value("outrider_steps_total", source="predrafted") == predrafted
    assert value("outrider_steps_total", source="looked up") == 0  # not where lengths are fixed
    drafted = sum(r.speculation.num_draft_tokens for r in both)
    accepted = sum(r.speculation.num_accepted_tokens for r in both)
    assert value("outrider_draft_tokens_total") == drafted
    assert value("outrider_accepted_tokens_total") == accepted
    at = [value("outrider_draft_tokens_total", position=str(i)) for i in range(4)]
    assert at[0] == sum(r.speculation.num_steps for r in both)
    assert at[0] >= at[1] >= at[2] > at[3] == 0
    compute = sum(
        stage.duration_ns
        for r in both
        for stage in r.latency.critical_path
        if stage.stage == "verify_compute"
    )
    sums = value("outrider_stage_seconds_sum", stage="verify_compute")
    assert sums == pytest.approx(compute / 1e9)
    assert value("outrider_stage_seconds_count", stage="verify_compute") == 2
    assert value("outrider_time_to_first_token_seconds_bucket", le="+Inf") == 2
    assert value("outrider_time_per_output_token_seconds_count") == 2
    assert value("outrider_queued_requests") == value("outrider_running_requests") == 0
    assert value("outrider_refused_requests_total") == 0


async def test_prompts_that_are_not_read_again_are_counted(system: System) -> None:
    for _ in range(2):
        await system.generate(f"{PROMPT} " * 12, max_new_tokens=1)
    value = await scrape(system.metrics["target"])
    assert value("outrider_reused_tokens_total") > 0
    assert value("outrider_waiting_sessions") == 0


async def test_looked_up_drafts_are_counted_apart(system: System) -> None:
    text = "the cat sat on the mat " * 8
    response = await system.generate(text, prompt_lookup=True, num_speculative_tokens=2)
    counts = response.speculation
    assert counts.num_lookup_steps > 0
    value = await scrape(system.metrics["orchestrator"])
    assert value("outrider_steps_total", source="looked up") == counts.num_lookup_steps
    assert value("outrider_steps_total") == counts.num_steps
    info = await system.generation.GetServerInfo(generation_pb2.GetServerInfoRequest())
    assert info.activity.num_lookup_steps == counts.num_lookup_steps


async def test_server_info_says_the_same(system: System) -> None:
    response = await system.generate(PROMPT, num_speculative_tokens=3, ignore_eos=True)
    info = await system.generation.GetServerInfo(generation_pb2.GetServerInfoRequest())
    activity, counts = info.activity, response.speculation
    assert (activity.num_ended_requests, activity.num_running_requests) == (1, 0)
    assert activity.num_prompt_tokens == response.usage.num_prompt_tokens
    assert activity.num_output_tokens == len(response.token_ids)
    assert activity.num_steps == activity.draft_tokens_by_position[0] == counts.num_steps
    assert activity.num_cache_hits == counts.num_cache_hits
    assert sum(activity.draft_tokens_by_position) == counts.num_draft_tokens
    assert sum(activity.accepted_tokens_by_position) == counts.num_accepted_tokens
    assert sum(stage.duration_ns for stage in activity.critical_path) == response.latency.wall_ns
    assert activity.uptime_ns > response.latency.wall_ns


async def test_tokens_cut_by_a_stop_string_stay_counted(system: System) -> None:
    """A counter that falls is taken for one that started anew."""
    whole = await system.generate(PROMPT, max_new_tokens=40, ignore_eos=True)
    stop = whole.text[10:13]
    cut = await system.generate(PROMPT, max_new_tokens=40, ignore_eos=True, stop_strings=[stop])
    value = await scrape(system.metrics["orchestrator"])
    committed = value("outrider_output_tokens_total")
    assert committed >= len(whole.token_ids) + len(cut.token_ids)


async def test_a_running_request_is_seen_in_all_services(system: System) -> None:
    request = generation_pb2.GenerateRequest(prompt=PROMPT, max_new_tokens=400, ignore_eos=True)
    call = system.generation.GenerateStream(request)
    await call.read()
    value = await scrape(system.metrics["orchestrator"])
    assert value("outrider_running_requests") == 1
    assert value("outrider_output_tokens_total") > 0
    for name in ("draft", "target"):
        value = await scrape(system.metrics[name])
        while value("outrider_pass_tokens_sum") < len(PROMPT.split()):
            # The draft reads the prompt while the target does, and no reply waits for it.
            await asyncio.sleep(0.01)
            value = await scrape(system.metrics[name])
        assert (value("outrider_slots"), value("outrider_slots_in_use")) == (4, 1)
        assert value("outrider_kv_cache_bytes") > 0
        assert value("outrider_threads") == 1
        assert value("outrider_pass_jobs_count") == value("outrider_pass_seconds_count") > 0
        value("outrider_pending_jobs")  # which there are now and then
    call.cancel()
    assert await all_slots_free(system)


async def test_calls_are_counted_by_how_they_ended(system: System) -> None:
    await system.generate(PROMPT, max_new_tokens=2)
    with suppress(grpc.aio.AioRpcError):
        await system.generate("")
    request = generation_pb2.GenerateRequest(prompt=PROMPT, max_new_tokens=450, ignore_eos=True)
    cancelled = system.generation.GenerateStream(request)
    await cancelled.read()
    cancelled.cancel()
    assert await all_slots_free(system)
    value = await scrape(system.metrics["orchestrator"])
    for code in ("OK", "InvalidArgument"):
        assert value("grpc_server_handled_total", grpc_code=code, **GENERATION) == 1, code
    assert value("grpc_server_handled_total", grpc_method="GenerateStream") == 1
    assert value("grpc_server_handled_total", grpc_code="Canceled") == 1
    assert value("grpc_server_started_total", grpc_type="unary", **GENERATION) == 2
    assert value("grpc_server_handling_seconds_count", **GENERATION) == 2
    target = await scrape(system.metrics["target"])
    assert target("grpc_server_handled_total", grpc_type="bidi_stream", grpc_method="Verify") == 2


async def test_messages_are_counted_as_they_pass(system: System) -> None:
    stream = system.target.Verify()
    for length in (0, 3):
        await stream.write(target_pb2.VerifyRequest(context_length=length, token_ids=[5, 6, 7]))
        await stream.read()
    target = await scrape(system.metrics["target"])  # the stream is still open
    assert target("grpc_server_msg_received_total", grpc_method="Verify") == 2
    assert target("grpc_server_msg_sent_total", grpc_method="Verify") == 2
    stream.cancel()
    await system.generate(PROMPT, max_new_tokens=2)
    request = generation_pb2.GenerateRequest(prompt=PROMPT, max_new_tokens=9, ignore_eos=True)
    num_messages = len([message async for message in system.generation.GenerateStream(request)])
    value = await scrape(system.metrics["orchestrator"])
    assert value("grpc_server_msg_received_total", **GENERATION) == 1
    assert value("grpc_server_msg_sent_total", **GENERATION) == 1
    assert value("grpc_server_msg_received_total", grpc_method="GenerateStream") == 1
    assert value("grpc_server_msg_sent_total", grpc_method="GenerateStream") == num_messages > 1


async def test_counters_of_calls_are_there_before_the_first_call() -> None:
    service = "outrider.v1.TargetService"
    value = await scrape(Metrics(list, service))
    for method in ("Verify", "GetModelInfo"):
        labels = {"grpc_service": service, "grpc_method": method}
        for name in ("started_total", "msg_received_total", "msg_sent_total"):
            assert value(f"grpc_server_{name}", **labels) == 0
        for code in ("OK", "ResourceExhausted", "Canceled"):
            assert value("grpc_server_handled_total", grpc_code=code, **labels) == 0
        assert value("grpc_server_handling_seconds_count", **labels) == 0
    assert value("grpc_server_started_total", grpc_type="bidi_stream", grpc_method="Verify") == 0


async def test_a_port_that_is_taken_is_a_clear_error() -> None:
    service = "outrider.v1.GenerationService"
    assert start_metrics(ServerOptions(), service, list) is None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"metrics on 127.0.0.1:{port}"):
            start_metrics(ServerOptions(metrics_port=port), service, list)


# What an expression of PromQL consists of beside metrics and labels.
PROMQL = {"sum", "min", "rate", "by", "histogram_quantile", "le", "__rate_interval"}
DASHBOARD = Path(__file__).parents[3] / "deploy/grafana/outrider.json"


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


async def test_the_dashboard_asks_for_what_there_is(tiny_models: Callable[..., Path]) -> None:
    async with running_system(tiny_models("llama"), tiny_models("llama")) as system:
        await system.generate(PROMPT, num_speculative_tokens=2)
        scraped = [await scrape(metrics) for metrics in system.metrics.values()]
    samples = [sample for value in scraped for sample in value.samples]
    metrics = {sample.name for sample in samples}
    labels = {label for sample in samples for label in sample.labels} | {"job"}
    values = {value for sample in samples for value in sample.labels.values()} | {*system.metrics}
    assert len(expressions()) > 20
    for expression in expressions():
        for matcher in re.findall(r'="([^"]*)"', expression):
            assert matcher in values, expression
        words = set(re.findall(r"[A-Za-z_]\w*", re.sub(r'"[^"]*"', "", expression)))
        assert words & metrics, expression
        assert words - PROMQL <= metrics | labels, expression
    drawn = set(re.findall(r"outrider_[a-z_]+", " ".join(expressions())))
    drawn = {re.sub(r"_(bucket|sum|count)$", "", name) for name in drawn}
    ours = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in metrics}
    assert {name for name in ours if name.startswith("outrider_")} == drawn
