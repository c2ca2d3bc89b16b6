"""Results from protobuf to dataclasses."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from outrider.client.results import (
    Generation,
    Latency,
    ServerActivity,
    ServerInfo,
    Usage,
)
from outrider.protocol.codec import model_info_from_wire
from outrider.protocol.messages import Interval, Outage, SpeculationStats, TextPiece
from outrider.v1 import generation_pb2


def generation_from_wire(message: generation_pb2.GenerateResponse) -> Generation:
    latency = message.latency
    finish_reason = generation_pb2.FinishReason.Name(message.finish_reason)
    return Generation(
        text=message.text,
        token_ids=list(message.token_ids),
        finish_reason=finish_reason.removeprefix("FINISH_REASON_").lower(),
        seed=message.seed,
        usage=Usage(message.usage.num_prompt_tokens, message.usage.num_output_tokens),
        speculation=_speculation_from_wire(message.speculation),
        latency=Latency(
            wall_ns=latency.wall_ns,
            ttft_ns=latency.ttft_ns,
            tpot_ns=latency.tpot_ns,
            critical_path=_durations(latency.critical_path),
            hidden=_durations(latency.hidden),
        ),
        trace=[
            Interval(**_by_name(one, Interval) | {"counts": dict(one.counts)})
            for one in message.trace
        ],
        num_target_threads=message.num_target_threads,
        draft_failure=message.draft_failure,
    )


def _speculation_from_wire(message: generation_pb2.SpeculationStats) -> SpeculationStats:
    lists = {"acceptance_histogram": list(message.acceptance_histogram)}
    return SpeculationStats(**_by_name(message, SpeculationStats) | lists)


def _by_name(message: Any, kind: type[Any]) -> dict[str, Any]:
    """The values of the message's fields that the dataclass has, too, by name."""
    return {field.name: getattr(message, field.name) for field in dataclasses.fields(kind)}


def _durations(stages: Iterable[generation_pb2.StageDuration]) -> dict[str, int]:
    return {stage.stage: stage.duration_ns for stage in stages}


def piece_from_wire(message: generation_pb2.TextPiece) -> TextPiece:
    source = generation_pb2.TokenSource.Name(message.source)
    return TextPiece(message.text, message.token_id, source.removeprefix("TOKEN_SOURCE_").lower())


def server_info_from_wire(message: generation_pb2.GetServerInfoResponse) -> ServerInfo:
    return ServerInfo(
        version=message.version,
        target=model_info_from_wire(message.target),
        draft=model_info_from_wire(message.draft) if message.HasField("draft") else None,
        default_num_predrafts=message.default_num_predrafts,
        has_chat_template=message.has_chat_template,
        activity=_activity_from_wire(message.activity),
        draft_outage=(
            Outage(**_by_name(message.draft_outage, Outage))
            if message.HasField("draft_outage")
            else None
        ),
    )


def _activity_from_wire(message: generation_pb2.ServerActivity) -> ServerActivity:
    lists = {
        "draft_tokens_by_position": list(message.draft_tokens_by_position),
        "accepted_tokens_by_position": list(message.accepted_tokens_by_position),
        "critical_path": _durations(message.critical_path),
        "hidden": _durations(message.hidden),
    }
    return ServerActivity(**_by_name(message, ServerActivity) | lists)
