"""Conversion of requests from protobuf, and of results to protobuf."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct

from orchestrator.activity import Activity
from orchestrator.generation import Generation
from orchestrator.request import DEFAULT_MAX_NEW_TOKENS, Request, draw_seed
from orchestrator.text.conversation import Message
from outrider.protocol.codec import checked_sampling
from outrider.protocol.messages import Outage, SamplingParams, TextPiece
from outrider.v1 import generation_pb2


def request_from_wire(
    message: generation_pb2.GenerateRequest, most_new_tokens: int | None = None
) -> Request:
    """The validated request. Unless it sets `max_new_tokens`, it gets at most `most_new_tokens`.

    Raises InvalidRequest.
    """
    sampling = SamplingParams(
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        min_p=message.min_p,
        seed=message.seed if message.HasField("seed") else draw_seed(),
    )
    num_speculative_tokens = None
    if message.HasField("num_speculative_tokens"):
        num_speculative_tokens = message.num_speculative_tokens
    request = Request(
        prompt=message.prompt,
        messages=tuple(Message(turn.role, turn.content) for turn in message.messages),
        max_new_tokens=(
            message.max_new_tokens
            if message.HasField("max_new_tokens")
            else min(DEFAULT_MAX_NEW_TOKENS, most_new_tokens or DEFAULT_MAX_NEW_TOKENS)
        ),
        sampling=checked_sampling(sampling),
        stop_strings=tuple(message.stop_strings),
        num_speculative_tokens=num_speculative_tokens,
        ignore_eos=message.ignore_eos,
        num_predrafts=message.num_predrafts if message.HasField("num_predrafts") else None,
        prompt_lookup=message.prompt_lookup if message.HasField("prompt_lookup") else None,
        continue_final_message=message.continue_final_message,
        chat_template_kwargs=_plain(message.chat_template_kwargs),
    )
    request.check(most_new_tokens)
    return request


def _plain(value: Any) -> Any:
    """A value of a Struct as in JSON; a Struct's numbers are all floating."""
    if isinstance(value, Struct):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, ListValue):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def piece_to_wire(piece: TextPiece) -> generation_pb2.TextPiece:
    return generation_pb2.TextPiece(
        text=piece.text, token_id=piece.token_id, source=f"TOKEN_SOURCE_{piece.source.upper()}"
    )


def result_to_wire(generation: Generation) -> generation_pb2.GenerateResponse:
    path, estimates = generation.path, generation.estimates
    intervals = [] if path.timeline is None else path.timeline.intervals
    return generation_pb2.GenerateResponse(
        text=generation.text,
        token_ids=generation.token_ids,
        finish_reason=_finish_reason(generation),
        seed=generation.request.sampling.seed,
        usage=generation_pb2.Usage(
            num_prompt_tokens=generation.num_prompt_tokens,
            num_output_tokens=len(generation.token_ids),
        ),
        speculation=_speculation_to_wire(generation),
        latency=generation_pb2.LatencyReport(
            wall_ns=path.wall_ns,
            ttft_ns=path.ttft_ns,
            tpot_ns=path.tpot_ns,
            critical_path=_durations_to_wire(path.stages),
            hidden=_durations_to_wire(path.hidden),
        ),
        trace=[generation_pb2.TraceInterval(**dataclasses.asdict(one)) for one in intervals],
        draft_failure=generation.draft_failure,
        num_target_threads=generation.num_target_threads,
        estimates=None if estimates is None else dataclasses.asdict(estimates),
    )


def _finish_reason(generation: Generation) -> generation_pb2.FinishReason:
    if generation.stopped:
        return generation_pb2.FINISH_REASON_STOP
    if len(generation.token_ids) < generation.request.max_new_tokens:
        return generation_pb2.FINISH_REASON_CONTEXT_LIMIT
    return generation_pb2.FINISH_REASON_LENGTH


def _speculation_to_wire(generation: Generation) -> generation_pb2.SpeculationStats:
    """The counts have the names of the message's fields."""
    names = (field.name for field in generation_pb2.SpeculationStats.DESCRIPTOR.fields)
    counts = {name: getattr(generation.speculation, name) for name in names}
    return generation_pb2.SpeculationStats(**counts)


def _durations_to_wire(stages: Mapping[str, int]) -> list[generation_pb2.StageDuration]:
    return [
        generation_pb2.StageDuration(stage=stage, duration_ns=duration_ns)
        for stage, duration_ns in stages.items()
    ]


def outage_to_wire(outage: Outage) -> generation_pb2.DraftOutage:
    return generation_pb2.DraftOutage(**dataclasses.asdict(outage))


def activity_to_wire(activity: Activity, num_queued: int) -> generation_pb2.ServerActivity:
    totals = activity.totals()
    speculation = totals.speculation
    positions = range(len(speculation.length_histogram) - 1)
    return generation_pb2.ServerActivity(
        uptime_ns=activity.uptime_ns,
        num_queued_requests=num_queued,
        num_running_requests=activity.num_running,
        num_ended_requests=activity.num_ended,
        num_prompt_tokens=totals.num_prompt_tokens,
        num_output_tokens=totals.num_output_tokens,
        num_steps=speculation.num_steps,
        num_cache_hits=speculation.num_cache_hits,
        num_lookup_steps=speculation.num_lookup_steps,
        draft_tokens_by_position=map(speculation.drafted_at, positions),
        accepted_tokens_by_position=map(speculation.accepted_at, positions),
        critical_path=_durations_to_wire(totals.critical_path),
        hidden=_durations_to_wire(totals.hidden),
    )
