from __future__ import annotations

from orchestrator.activity import Activity
from orchestrator.admission import Admission
from orchestrator.generation import Generation
from orchestrator.metrics import generation_metrics
from orchestrator.reporting.speculation import Speculation
from orchestrator.request import Request


def test_what_ended_requests_counted_is_told_to_prometheus() -> None:
    generation = Generation(Request())
    generation.speculation = Speculation(num_cache_misses=3)
    activity = Activity()
    with activity.running(generation):
        pass
    values = {
        sample.name: sample.value
        for metric in generation_metrics(activity, Admission(1))
        for sample in metric.samples
    }
    assert values["outrider_cache_misses_total"] == 3
