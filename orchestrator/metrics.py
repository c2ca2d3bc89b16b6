"""The orchestrator's metrics, except those of its RPCs."""

from collections.abc import Iterator, Mapping

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from orchestrator.activity import Activity
from orchestrator.admission import Admission
from orchestrator.reporting.speculation import Speculation
from orchestrator.sessions.pair import Pair
from outrider.observability.metrics import histogram

# Longer drafts are rare; later positions are left out.
MAX_POSITIONS = 16


def generation_metrics(activity: Activity, admission: Admission) -> Iterator[Metric]:
    """Metrics of requests, including running ones."""
    totals = activity.totals()
    yield _gauge("queued_requests", "Requests that wait for a slot.", admission.num_queued)
    yield _gauge("running_requests", "Requests that run.", activity.num_running)
    yield _counters(
        "refused_requests",
        "Requests refused: the queue was too long, or the deadline could not be met.",
        "reason",
        {"queue": admission.num_refused, "deadline": admission.num_unreachable},
    )
    yield _counter("prompt_tokens", "Tokens of prompts.", totals.num_prompt_tokens)
    yield _counter("output_tokens", "Tokens committed.", totals.num_output_tokens)
    yield from _speculation_metrics(totals.speculation)
    yield from _latency_metrics(activity)


def pair_metrics(pair: Pair | None) -> Iterator[Metric]:
    """Metrics of whether the target and, if configured, the draft can be used."""
    target_is_up = pair is not None and pair.target_link.outage is None
    yield _gauge("target_up", "Whether the target can be used.", int(target_is_up))
    if pair is not None and pair.draft_link is not None:
        is_up = pair.draft_info is not None
        yield _gauge("draft_up", "Whether the draft can be used.", int(is_up))


def _speculation_metrics(speculation: Speculation) -> Iterator[Metric]:
    num_predrafted, num_looked_up = speculation.num_cache_hits, speculation.num_lookup_steps
    num_drafted = speculation.num_steps - num_predrafted - num_looked_up
    yield _counters(
        "steps",
        "Steps with draft tokens, by where these came from; predrafted: cache hits.",
        "source",
        {"predrafted": num_predrafted, "looked up": num_looked_up, "drafted": num_drafted},
    )
    yield _counter(
        "cache_misses",
        "Speculation cache misses: steps whose outcome had not been predrafted.",
        speculation.num_cache_misses,
    )
    for name, text, at in (
        ("draft_tokens", "Draft tokens verified.", speculation.drafted_at),
        ("accepted_tokens", "Draft tokens accepted.", speculation.accepted_at),
    ):
        by_position = {str(position): at(position) for position in range(MAX_POSITIONS)}
        yield _counters(name, f"{text} By position in the draft.", "position", by_position)
    yield _counter(
        "predrafted_tokens",
        "Draft tokens predrafted behind verifications, running requests included.",
        speculation.num_predrafted_tokens,
    )


def _latency_metrics(activity: Activity) -> Iterator[Metric]:
    """Distributions of the values of latency reports, over requests that have ended."""
    for name, text, stages in (
        ("stage", "A request's time on its critical path.", activity.stages),
        ("hidden", "A request's work behind its critical path.", activity.hidden),
    ):
        yield histogram(f"outrider_{name}_seconds", text, stages, 1e9, "stage")
    for name, text, times in (
        ("time_to_first_token", "From a request's arrival to its first token.", activity.ttft),
        ("time_per_output_token", "A request's time of a token after the first.", activity.tpot),
    ):
        yield histogram(f"outrider_{name}_seconds", text, {"": times}, 1e9)


def _gauge(name: str, text: str, value: int) -> Metric:
    return GaugeMetricFamily(f"outrider_{name}", text, value)


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(f"outrider_{name}", text, value)


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    """A counter for each value of a label."""
    family = CounterMetricFamily(f"outrider_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
