"""The metrics of a draft or target service, except those of its RPCs."""

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from outrider.engine.worker import Worker
from outrider.observability.metrics import histogram


def model_metrics(worker: Worker | None) -> Iterator[Metric]:
    """The metrics of an engine and its scheduler; empty while the model is loading."""
    if worker is None:
        return
    engine, scheduler = worker.engine, worker.scheduler
    for name, text, value in (
        ("slots", "Sessions that fit.", worker.num_slots),
        ("slots_in_use", "Sessions there are.", worker.num_slots - worker.num_free_slots),
        ("waiting_sessions", "Sessions that wait for a slot.", scheduler.num_waiting),
        ("pending_jobs", "Jobs that wait for a forward pass or are in one.", scheduler.num_jobs),
        ("kv_cache_bytes", "Room of the KV cache.", engine.cache.num_bytes),
        ("cached_tokens", "Tokens that slots hold.", scheduler.num_held_tokens),
        ("reserved_tokens", "Tokens that sessions may hold.", scheduler.num_reserved_tokens),
        ("threads", "CPU threads of a forward pass.", scheduler.threads.current),
    ):
        yield GaugeMetricFamily(f"outrider_{name}", text, value)
    yield CounterMetricFamily(
        "outrider_reused_tokens",
        "Tokens that were not read, since a slot had them.",
        scheduler.num_reused_tokens,
    )
    passes = engine.passes
    for name, text, distribution, unit in (
        ("outrider_pass_jobs", "Jobs that shared a forward pass.", passes.jobs, 1),
        ("outrider_pass_tokens", "Tokens in a forward pass.", passes.tokens, 1),
        ("outrider_pass_seconds", "Time of a forward pass.", passes.duration_ns, 1e9),
    ):
        yield histogram(name, text, {"": distribution}, unit)
