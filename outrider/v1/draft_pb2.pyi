from outrider.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProposeRequest(_message.Message):
    __slots__ = ("context_length", "token_ids", "num_speculative_tokens", "sampling", "vocab_size", "draft_token_ids", "num_branches", "num_prepared_tokens", "num_branches_is_limit", "acceptance_rate", "step_span_id")
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_SPECULATIVE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_BRANCHES_FIELD_NUMBER: _ClassVar[int]
    NUM_PREPARED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BRANCHES_IS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_RATE_FIELD_NUMBER: _ClassVar[int]
    STEP_SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    context_length: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_speculative_tokens: int
    sampling: _common_pb2.SamplingParams
    vocab_size: int
    draft_token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_branches: int
    num_prepared_tokens: int
    num_branches_is_limit: bool
    acceptance_rate: float
    step_span_id: int
    def __init__(self, context_length: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., num_speculative_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., vocab_size: _Optional[int] = ..., draft_token_ids: _Optional[_Iterable[int]] = ..., num_branches: _Optional[int] = ..., num_prepared_tokens: _Optional[int] = ..., num_branches_is_limit: _Optional[bool] = ..., acceptance_rate: _Optional[float] = ..., step_span_id: _Optional[int] = ...) -> None: ...

class ProposeResponse(_message.Message):
    __slots__ = ("context_length", "draft_token_ids", "sequence_length", "timings", "prepared")
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    context_length: int
    draft_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sequence_length: int
    timings: _common_pb2.ServerTimings
    prepared: _containers.RepeatedCompositeFieldContainer[PreparedProposal]
    def __init__(self, context_length: _Optional[int] = ..., draft_token_ids: _Optional[_Iterable[int]] = ..., sequence_length: _Optional[int] = ..., timings: _Optional[_Union[_common_pb2.ServerTimings, _Mapping]] = ..., prepared: _Optional[_Iterable[_Union[PreparedProposal, _Mapping]]] = ...) -> None: ...

class PreparedProposal(_message.Message):
    __slots__ = ("assumed_token_ids", "draft_token_ids", "forward_ns")
    ASSUMED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_NS_FIELD_NUMBER: _ClassVar[int]
    assumed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    draft_token_ids: _containers.RepeatedScalarFieldContainer[int]
    forward_ns: int
    def __init__(self, assumed_token_ids: _Optional[_Iterable[int]] = ..., draft_token_ids: _Optional[_Iterable[int]] = ..., forward_ns: _Optional[int] = ...) -> None: ...
