"""The metrics of a draft or target service besides those of its RPCs."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from outrider.engine.activity import ModelActivity
from outrider.observability.metrics import histogram


def model_metrics(activity: ModelActivity | None) -> Iterator[Metric]:
    """The metrics of an engine and its scheduler; none while the model loads."""
    if activity is None:
        return
    in_use = activity.num_slots - activity.num_free_slots
    yield GaugeMetricFamily("outrider_slots", "Sessions that fit.", activity.num_slots)
    yield GaugeMetricFamily("outrider_slots_in_use", "Sessions there are.", in_use)
    yield GaugeMetricFamily(
        "outrider_waiting_sessions",
        "Sessions that wait for a slot.",
        activity.num_waiting_sessions,
    )
    yield GaugeMetricFamily(
        "outrider_pending_jobs",
        "Jobs that wait for a forward pass or are in one.",
        activity.num_pending_jobs,
    )
    yield CounterMetricFamily(
        "outrider_reused_tokens",
        "Tokens that were not read, since a slot had them.",
        activity.num_reused_tokens,
    )
    yield GaugeMetricFamily("outrider_kv_cache_bytes", "Size of the KV cache.", activity.kv_bytes)
    yield GaugeMetricFamily(
        "outrider_threads", "CPU threads of a forward pass.", activity.num_threads
    )
    passes = activity.passes
    for name, text, distribution, unit in (
        ("outrider_pass_jobs", "Jobs that shared a forward pass.", passes.jobs, 1),
        ("outrider_pass_tokens", "Tokens in a forward pass.", passes.tokens, 1),
        ("outrider_pass_seconds", "Time of a forward pass.", passes.duration_ns, 1e9),
    ):
        yield histogram(name, text, {"": distribution}, unit)
