from outrider.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NextTokenKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NEXT_TOKEN_KIND_UNSPECIFIED: _ClassVar[NextTokenKind]
    NEXT_TOKEN_KIND_RECOVERED: _ClassVar[NextTokenKind]
    NEXT_TOKEN_KIND_BONUS: _ClassVar[NextTokenKind]
NEXT_TOKEN_KIND_UNSPECIFIED: NextTokenKind
NEXT_TOKEN_KIND_RECOVERED: NextTokenKind
NEXT_TOKEN_KIND_BONUS: NextTokenKind

class VerifyRequest(_message.Message):
    __slots__ = ("context_length", "token_ids", "draft_token_ids", "sampling", "assumes_result", "num_run_ahead_tokens", "vocabulary_fingerprint", "step_span_id", "hidden_states", "max_length")
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ASSUMES_RESULT_FIELD_NUMBER: _ClassVar[int]
    NUM_RUN_AHEAD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STEP_SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    context_length: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    draft_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _common_pb2.SamplingParams
    assumes_result: bool
    num_run_ahead_tokens: int
    vocabulary_fingerprint: str
    step_span_id: int
    hidden_states: _common_pb2.HiddenStateSpec
    max_length: int
    def __init__(self, context_length: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., draft_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., assumes_result: _Optional[bool] = ..., num_run_ahead_tokens: _Optional[int] = ..., vocabulary_fingerprint: _Optional[str] = ..., step_span_id: _Optional[int] = ..., hidden_states: _Optional[_Union[_common_pb2.HiddenStateSpec, _Mapping]] = ..., max_length: _Optional[int] = ...) -> None: ...

class VerifyResponse(_message.Message):
    __slots__ = ("result", "run_ahead", "stale", "hidden_states")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    RUN_AHEAD_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    result: VerifyResult
    run_ahead: VerifyResult
    stale: StaleRequest
    hidden_states: _common_pb2.HiddenStates
    def __init__(self, result: _Optional[_Union[VerifyResult, _Mapping]] = ..., run_ahead: _Optional[_Union[VerifyResult, _Mapping]] = ..., stale: _Optional[_Union[StaleRequest, _Mapping]] = ..., hidden_states: _Optional[_Union[_common_pb2.HiddenStates, _Mapping]] = ...) -> None: ...

class VerifyResult(_message.Message):
    __slots__ = ("context_length", "num_accepted_tokens", "next_token_id", "next_token_kind", "sequence_length", "timings", "hidden_states")
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    NUM_ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_KIND_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    context_length: int
    num_accepted_tokens: int
    next_token_id: int
    next_token_kind: NextTokenKind
    sequence_length: int
    timings: _common_pb2.ServerTimings
    hidden_states: _common_pb2.HiddenStates
    def __init__(self, context_length: _Optional[int] = ..., num_accepted_tokens: _Optional[int] = ..., next_token_id: _Optional[int] = ..., next_token_kind: _Optional[_Union[NextTokenKind, str]] = ..., sequence_length: _Optional[int] = ..., timings: _Optional[_Union[_common_pb2.ServerTimings, _Mapping]] = ..., hidden_states: _Optional[_Union[_common_pb2.HiddenStates, _Mapping]] = ...) -> None: ...

class StaleRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
