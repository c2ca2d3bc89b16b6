from google.protobuf import struct_pb2 as _struct_pb2
from outrider.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CONTEXT_LIMIT: _ClassVar[FinishReason]

class TokenSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKEN_SOURCE_UNSPECIFIED: _ClassVar[TokenSource]
    TOKEN_SOURCE_DRAFT: _ClassVar[TokenSource]
    TOKEN_SOURCE_TARGET: _ClassVar[TokenSource]
    TOKEN_SOURCE_LOOKUP: _ClassVar[TokenSource]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CONTEXT_LIMIT: FinishReason
TOKEN_SOURCE_UNSPECIFIED: TokenSource
TOKEN_SOURCE_DRAFT: TokenSource
TOKEN_SOURCE_TARGET: TokenSource
TOKEN_SOURCE_LOOKUP: TokenSource

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "messages", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop_strings", "num_speculative_tokens", "ignore_eos", "num_predrafts", "trace", "prompt_lookup", "continue_final_message", "chat_template_kwargs")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    NUM_SPECULATIVE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREDRAFTS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOOKUP_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_KWARGS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop_strings: _containers.RepeatedScalarFieldContainer[str]
    num_speculative_tokens: int
    ignore_eos: bool
    num_predrafts: int
    trace: bool
    prompt_lookup: bool
    continue_final_message: bool
    chat_template_kwargs: _struct_pb2.Struct
    def __init__(self, prompt: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop_strings: _Optional[_Iterable[str]] = ..., num_speculative_tokens: _Optional[int] = ..., ignore_eos: _Optional[bool] = ..., num_predrafts: _Optional[int] = ..., trace: _Optional[bool] = ..., prompt_lookup: _Optional[bool] = ..., continue_final_message: _Optional[bool] = ..., chat_template_kwargs: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("num_prompt_tokens", "num_output_tokens")
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_prompt_tokens: int
    num_output_tokens: int
    def __init__(self, num_prompt_tokens: _Optional[int] = ..., num_output_tokens: _Optional[int] = ...) -> None: ...

class SpeculationStats(_message.Message):
    __slots__ = ("num_steps", "num_draft_tokens", "num_accepted_tokens", "draft_acceptance_rate", "mean_acceptance_length", "acceptance_histogram", "num_cache_hits", "num_cache_hit_accepted_tokens", "num_predrafted_tokens", "num_lookup_steps", "num_lookup_draft_tokens", "num_lookup_accepted_tokens", "num_pipelined_steps", "num_stale_steps", "num_cache_misses", "num_idle_steps", "num_active_steps")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_ACCEPTANCE_RATE_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACCEPTANCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHE_HIT_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREDRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOOKUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOOKUP_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOOKUP_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PIPELINED_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_STALE_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHE_MISSES_FIELD_NUMBER: _ClassVar[int]
    NUM_IDLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_ACTIVE_STEPS_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    num_draft_tokens: int
    num_accepted_tokens: int
    draft_acceptance_rate: float
    mean_acceptance_length: float
    acceptance_histogram: _containers.RepeatedScalarFieldContainer[int]
    num_cache_hits: int
    num_cache_hit_accepted_tokens: int
    num_predrafted_tokens: int
    num_lookup_steps: int
    num_lookup_draft_tokens: int
    num_lookup_accepted_tokens: int
    num_pipelined_steps: int
    num_stale_steps: int
    num_cache_misses: int
    num_idle_steps: int
    num_active_steps: int
    def __init__(self, num_steps: _Optional[int] = ..., num_draft_tokens: _Optional[int] = ..., num_accepted_tokens: _Optional[int] = ..., draft_acceptance_rate: _Optional[float] = ..., mean_acceptance_length: _Optional[float] = ..., acceptance_histogram: _Optional[_Iterable[int]] = ..., num_cache_hits: _Optional[int] = ..., num_cache_hit_accepted_tokens: _Optional[int] = ..., num_predrafted_tokens: _Optional[int] = ..., num_lookup_steps: _Optional[int] = ..., num_lookup_draft_tokens: _Optional[int] = ..., num_lookup_accepted_tokens: _Optional[int] = ..., num_pipelined_steps: _Optional[int] = ..., num_stale_steps: _Optional[int] = ..., num_cache_misses: _Optional[int] = ..., num_idle_steps: _Optional[int] = ..., num_active_steps: _Optional[int] = ...) -> None: ...

class PolicyEstimates(_message.Message):
    __slots__ = ("acceptance_rate", "sufficient_acceptance_rate", "target_step_ns", "slowdown_ns", "draft_token_ns")
    ACCEPTANCE_RATE_FIELD_NUMBER: _ClassVar[int]
    SUFFICIENT_ACCEPTANCE_RATE_FIELD_NUMBER: _ClassVar[int]
    TARGET_STEP_NS_FIELD_NUMBER: _ClassVar[int]
    SLOWDOWN_NS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_NS_FIELD_NUMBER: _ClassVar[int]
    acceptance_rate: float
    sufficient_acceptance_rate: float
    target_step_ns: int
    slowdown_ns: int
    draft_token_ns: int
    def __init__(self, acceptance_rate: _Optional[float] = ..., sufficient_acceptance_rate: _Optional[float] = ..., target_step_ns: _Optional[int] = ..., slowdown_ns: _Optional[int] = ..., draft_token_ns: _Optional[int] = ...) -> None: ...

class StageDuration(_message.Message):
    __slots__ = ("stage", "duration_ns")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    duration_ns: int
    def __init__(self, stage: _Optional[str] = ..., duration_ns: _Optional[int] = ...) -> None: ...

class LatencyReport(_message.Message):
    __slots__ = ("wall_ns", "ttft_ns", "tpot_ns", "critical_path", "hidden")
    WALL_NS_FIELD_NUMBER: _ClassVar[int]
    TTFT_NS_FIELD_NUMBER: _ClassVar[int]
    TPOT_NS_FIELD_NUMBER: _ClassVar[int]
    CRITICAL_PATH_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    wall_ns: int
    ttft_ns: int
    tpot_ns: int
    critical_path: _containers.RepeatedCompositeFieldContainer[StageDuration]
    hidden: _containers.RepeatedCompositeFieldContainer[StageDuration]
    def __init__(self, wall_ns: _Optional[int] = ..., ttft_ns: _Optional[int] = ..., tpot_ns: _Optional[int] = ..., critical_path: _Optional[_Iterable[_Union[StageDuration, _Mapping]]] = ..., hidden: _Optional[_Iterable[_Union[StageDuration, _Mapping]]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "token_ids", "finish_reason", "seed", "usage", "speculation", "latency", "trace", "draft_failure", "num_target_threads", "estimates")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    SPECULATION_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FAILURE_FIELD_NUMBER: _ClassVar[int]
    NUM_TARGET_THREADS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATES_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: FinishReason
    seed: int
    usage: Usage
    speculation: SpeculationStats
    latency: LatencyReport
    trace: _containers.RepeatedCompositeFieldContainer[TraceInterval]
    draft_failure: str
    num_target_threads: int
    estimates: PolicyEstimates
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., seed: _Optional[int] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., speculation: _Optional[_Union[SpeculationStats, _Mapping]] = ..., latency: _Optional[_Union[LatencyReport, _Mapping]] = ..., trace: _Optional[_Iterable[_Union[TraceInterval, _Mapping]]] = ..., draft_failure: _Optional[str] = ..., num_target_threads: _Optional[int] = ..., estimates: _Optional[_Union[PolicyEstimates, _Mapping]] = ...) -> None: ...

class TraceInterval(_message.Message):
    __slots__ = ("track", "lane", "name", "begin_ns", "duration_ns", "counts")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TRACK_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BEGIN_NS_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    track: str
    lane: str
    name: str
    begin_ns: int
    duration_ns: int
    counts: _containers.ScalarMap[str, int]
    def __init__(self, track: _Optional[str] = ..., lane: _Optional[str] = ..., name: _Optional[str] = ..., begin_ns: _Optional[int] = ..., duration_ns: _Optional[int] = ..., counts: _Optional[_Mapping[str, int]] = ...) -> None: ...

class TextPiece(_message.Message):
    __slots__ = ("text", "token_id", "source")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_id: int
    source: TokenSource
    def __init__(self, text: _Optional[str] = ..., token_id: _Optional[int] = ..., source: _Optional[_Union[TokenSource, str]] = ...) -> None: ...

class GenerateStreamResponse(_message.Message):
    __slots__ = ("pieces", "result")
    PIECES_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    pieces: _containers.RepeatedCompositeFieldContainer[TextPiece]
    result: GenerateResponse
    def __init__(self, pieces: _Optional[_Iterable[_Union[TextPiece, _Mapping]]] = ..., result: _Optional[_Union[GenerateResponse, _Mapping]] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "target", "draft", "default_num_predrafts", "has_chat_template", "activity", "draft_outage")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_NUM_PREDRAFTS_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    DRAFT_OUTAGE_FIELD_NUMBER: _ClassVar[int]
    version: str
    target: _common_pb2.GetModelInfoResponse
    draft: _common_pb2.GetModelInfoResponse
    default_num_predrafts: int
    has_chat_template: bool
    activity: ServerActivity
    draft_outage: DraftOutage
    def __init__(self, version: _Optional[str] = ..., target: _Optional[_Union[_common_pb2.GetModelInfoResponse, _Mapping]] = ..., draft: _Optional[_Union[_common_pb2.GetModelInfoResponse, _Mapping]] = ..., default_num_predrafts: _Optional[int] = ..., has_chat_template: _Optional[bool] = ..., activity: _Optional[_Union[ServerActivity, _Mapping]] = ..., draft_outage: _Optional[_Union[DraftOutage, _Mapping]] = ...) -> None: ...

class DraftOutage(_message.Message):
    __slots__ = ("address", "reason", "since_ms")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    address: str
    reason: str
    since_ms: int
    def __init__(self, address: _Optional[str] = ..., reason: _Optional[str] = ..., since_ms: _Optional[int] = ...) -> None: ...

class ServerActivity(_message.Message):
    __slots__ = ("uptime_ns", "num_queued_requests", "num_running_requests", "num_ended_requests", "num_prompt_tokens", "num_output_tokens", "num_steps", "num_cache_hits", "num_lookup_steps", "draft_tokens_by_position", "accepted_tokens_by_position", "critical_path", "hidden")
    UPTIME_NS_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_ENDED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    NUM_LOOKUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_BY_POSITION_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_BY_POSITION_FIELD_NUMBER: _ClassVar[int]
    CRITICAL_PATH_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    uptime_ns: int
    num_queued_requests: int
    num_running_requests: int
    num_ended_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_steps: int
    num_cache_hits: int
    num_lookup_steps: int
    draft_tokens_by_position: _containers.RepeatedScalarFieldContainer[int]
    accepted_tokens_by_position: _containers.RepeatedScalarFieldContainer[int]
    critical_path: _containers.RepeatedCompositeFieldContainer[StageDuration]
    hidden: _containers.RepeatedCompositeFieldContainer[StageDuration]
    def __init__(self, uptime_ns: _Optional[int] = ..., num_queued_requests: _Optional[int] = ..., num_running_requests: _Optional[int] = ..., num_ended_requests: _Optional[int] = ..., num_prompt_tokens: _Optional[int] = ..., num_output_tokens: _Optional[int] = ..., num_steps: _Optional[int] = ..., num_cache_hits: _Optional[int] = ..., num_lookup_steps: _Optional[int] = ..., draft_tokens_by_position: _Optional[_Iterable[int]] = ..., accepted_tokens_by_position: _Optional[_Iterable[int]] = ..., critical_path: _Optional[_Iterable[_Union[StageDuration, _Mapping]]] = ..., hidden: _Optional[_Iterable[_Union[StageDuration, _Mapping]]] = ...) -> None: ...
