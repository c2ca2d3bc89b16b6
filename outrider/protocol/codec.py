"""Conversion to and from protobuf of the messages that several services share."""

import dataclasses
from collections.abc import Sequence

from outrider.errors import InvalidRequest
from outrider.protocol.hidden_states import HiddenStates, HiddenStateSpec
from outrider.protocol.messages import (
    BatchInvariance,
    ModelInfo,
    Predraft,
    PredraftPlan,
    Proposal,
    SamplingParams,
    Timings,
    VerifyResult,
)
from outrider.v1 import common_pb2, draft_pb2, target_pb2


def sampling_from_wire(message: common_pb2.SamplingParams) -> SamplingParams:
    """Converts sampling parameters. Raises InvalidRequest for values out of range."""
    top_p = message.top_p if message.HasField("top_p") else 1.0
    return checked_sampling(
        SamplingParams(message.temperature, message.top_k, top_p, message.min_p, message.seed)
    )


def checked_sampling(params: SamplingParams) -> SamplingParams:
    """Returns the parameters. Raises InvalidRequest for values out of range, NaN included."""
    if not 0.0 <= params.temperature < float("inf"):
        raise InvalidRequest("temperature must be 0 (greedy) or a positive number")
    if not 0.0 < params.top_p <= 1.0:
        raise InvalidRequest("top_p must be above 0 and at most 1")
    if not 0.0 <= params.min_p <= 1.0:
        raise InvalidRequest("min_p must be between 0 and 1")
    return params


def sampling_to_wire(params: SamplingParams) -> common_pb2.SamplingParams:
    return common_pb2.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
    )


def predraft_plan_from_wire(message: draft_pb2.ProposeRequest) -> PredraftPlan:
    """Converts a request's plan. Raises InvalidRequest for values out of range, NaN included."""
    if not 0.0 <= message.acceptance_rate <= 1.0:
        raise InvalidRequest("acceptance_rate must be between 0 and 1")
    return PredraftPlan(
        message.num_predrafts or message.max_predrafts,
        message.predraft_length,
        message.WhichOneof("fan_out") == "max_predrafts",
        message.acceptance_rate,
    )


def timings_to_wire(timings: Timings, total_ns: int = 0) -> common_pb2.ServerTimings:
    """With `total_ns`, if the timings are of an engine, which does not know it."""
    return common_pb2.ServerTimings(
        queue_ns=timings.queue_ns,
        forward_ns=timings.forward_ns,
        sample_ns=timings.sample_ns,
        total_ns=total_ns or timings.total_ns,
        batch_tokens=timings.batch_tokens,
        batch_sessions=timings.batch_sessions,
        num_threads=timings.num_threads,
    )


def timings_from_wire(message: common_pb2.ServerTimings) -> Timings:
    return Timings(
        message.queue_ns,
        message.forward_ns,
        message.sample_ns,
        message.total_ns,
        message.batch_tokens,
        message.batch_sessions,
        message.num_threads,
    )


def hidden_state_spec_to_wire(spec: HiddenStateSpec | None) -> common_pb2.HiddenStateSpec | None:
    if spec is None:
        return None
    return common_pb2.HiddenStateSpec(
        layers=spec.layers, hidden_size=spec.hidden_size, window=spec.window
    )


def hidden_state_spec_from_wire(message: common_pb2.HiddenStateSpec) -> HiddenStateSpec:
    return HiddenStateSpec(tuple(message.layers), message.hidden_size, message.window)


def hidden_states_to_wire(states: HiddenStates | None) -> common_pb2.HiddenStates | None:
    if states is None:
        return None
    return common_pb2.HiddenStates(
        first_index=states.first_index, num_tokens=states.num_tokens, data=states.data
    )


def hidden_states_from_wire(message: common_pb2.HiddenStates) -> HiddenStates:
    return HiddenStates(message.first_index, message.num_tokens, message.data)


def proposal_to_wire(
    proposal: Proposal, context_length: int, total_ns: int
) -> draft_pb2.ProposeResponse:
    """The answer to a request that makes the sequence `context_length` tokens long."""
    return draft_pb2.ProposeResponse(
        proposal=draft_pb2.Proposal(
            context_length=context_length,
            draft_token_ids=proposal.draft_token_ids,
            sequence_length=proposal.sequence_length,
            timings=timings_to_wire(proposal.timings, total_ns),
        )
    )


def proposal_from_wire(message: draft_pb2.Proposal) -> Proposal:
    return Proposal(
        message.context_length,
        tuple(message.draft_token_ids),
        message.sequence_length,
        timings_from_wire(message.timings),
    )


def predrafts_to_wire(predrafts: Sequence[Predraft], elapsed_ns: int) -> draft_pb2.ProposeResponse:
    """Converts predrafts, at least one, for the request that arrived `elapsed_ns` ago."""
    return draft_pb2.ProposeResponse(
        predrafts=draft_pb2.PredraftUpdate(
            context_length=predrafts[0].context_length,
            predrafts=[
                draft_pb2.Predraft(
                    assumed_token_ids=one.assumed_token_ids,
                    draft_token_ids=one.draft_token_ids,
                    forward_ns=one.forward_ns,
                )
                for one in predrafts
            ],
            elapsed_ns=elapsed_ns,
        )
    )


def predrafts_from_wire(message: draft_pb2.PredraftUpdate) -> list[Predraft]:
    return [
        Predraft(
            message.context_length,
            tuple(one.assumed_token_ids),
            tuple(one.draft_token_ids),
            one.forward_ns,
        )
        for one in message.predrafts
    ]


def verify_result_to_wire(result: VerifyResult, total_ns: int = 0) -> target_pb2.VerifyResponse:
    kind = (
        target_pb2.NEXT_TOKEN_KIND_BONUS
        if result.is_bonus
        else target_pb2.NEXT_TOKEN_KIND_RECOVERED
    )
    message = target_pb2.VerifyResult(
        context_length=result.context_length,
        num_accepted_tokens=result.num_accepted_tokens,
        next_token_id=result.next_token_id,
        next_token_kind=kind,
        sequence_length=result.sequence_length,
        timings=timings_to_wire(result.timings, total_ns),
        hidden_states=hidden_states_to_wire(result.hidden_states),
    )
    if result.is_run_ahead:
        return target_pb2.VerifyResponse(run_ahead=message)
    return target_pb2.VerifyResponse(result=message)


def verify_result_from_wire(
    message: target_pb2.VerifyResult, is_run_ahead: bool = False
) -> VerifyResult:
    return VerifyResult(
        message.context_length,
        message.num_accepted_tokens,
        message.next_token_id,
        message.next_token_kind == target_pb2.NEXT_TOKEN_KIND_BONUS,
        message.sequence_length,
        timings_from_wire(message.timings),
        is_run_ahead,
        hidden_states_from_wire(message.hidden_states)
        if message.HasField("hidden_states")
        else None,
    )


def model_info_to_wire(info: ModelInfo) -> common_pb2.GetModelInfoResponse:
    claim = info.batch_invariance
    return common_pb2.GetModelInfoResponse(
        model_id=info.model_id,
        revision=info.revision,
        dtype=info.dtype,
        device=info.device,
        max_context_length=info.max_context_length,
        vocab_size=info.vocab_size,
        vocabulary_fingerprint=info.vocabulary_fingerprint,
        eos_token_ids=info.eos_token_ids,
        num_slots=info.num_slots,
        num_free_slots=info.num_free_slots,
        version=info.version,
        token_ns=info.token_ns,
        wire_version=info.wire_version,
        num_threads=info.num_threads,
        batch_invariance=dataclasses.asdict(claim) if claim else None,
        reads_hidden_states=hidden_state_spec_to_wire(info.reads_hidden_states),
        num_layers=info.num_layers,
        hidden_size=info.hidden_size,
        gives_hidden_states=info.gives_hidden_states,
        max_cached_tokens=info.max_cached_tokens,
        num_cached_tokens=info.num_cached_tokens,
        step_ns=info.step_ns,
    )


def model_info_from_wire(message: common_pb2.GetModelInfoResponse) -> ModelInfo:
    claim = message.batch_invariance
    return ModelInfo(
        model_id=message.model_id,
        revision=message.revision,
        dtype=message.dtype,
        device=message.device,
        max_context_length=message.max_context_length,
        vocab_size=message.vocab_size,
        vocabulary_fingerprint=message.vocabulary_fingerprint,
        eos_token_ids=tuple(message.eos_token_ids),
        num_slots=message.num_slots,
        num_free_slots=message.num_free_slots,
        version=message.version,
        token_ns=message.token_ns,
        wire_version=message.wire_version,
        num_threads=message.num_threads,
        batch_invariance=BatchInvariance(claim.holds, claim.max_tokens, claim.across_threads)
        if message.HasField("batch_invariance")
        else None,
        reads_hidden_states=(
            hidden_state_spec_from_wire(message.reads_hidden_states)
            if message.HasField("reads_hidden_states")
            else None
        ),
        num_layers=message.num_layers,
        hidden_size=message.hidden_size,
        gives_hidden_states=message.gives_hidden_states,
        max_cached_tokens=message.max_cached_tokens,
        num_cached_tokens=message.num_cached_tokens,
        step_ns=message.step_ns,
    )
