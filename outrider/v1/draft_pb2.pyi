from outrider.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProposeRequest(_message.Message):
    __slots__ = ("context_length", "token_ids", "draft_token_ids", "num_speculative_tokens", "sampling", "vocab_size", "num_predrafts", "max_predrafts", "predraft_length", "acceptance_rate", "step_span_id", "hidden_states", "max_length")
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_SPECULATIVE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_PREDRAFTS_FIELD_NUMBER: _ClassVar[int]
    MAX_PREDRAFTS_FIELD_NUMBER: _ClassVar[int]
    PREDRAFT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_RATE_FIELD_NUMBER: _ClassVar[int]
    STEP_SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    context_length: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    draft_token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_speculative_tokens: int
    sampling: _common_pb2.SamplingParams
    vocab_size: int
    num_predrafts: int
    max_predrafts: int
    predraft_length: int
    acceptance_rate: float
    step_span_id: int
    hidden_states: _common_pb2.HiddenStates
    max_length: int
    def __init__(self, context_length: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., draft_token_ids: _Optional[_Iterable[int]] = ..., num_speculative_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., vocab_size: _Optional[int] = ..., num_predrafts: _Optional[int] = ..., max_predrafts: _Optional[int] = ..., predraft_length: _Optional[int] = ..., acceptance_rate: _Optional[float] = ..., step_span_id: _Optional[int] = ..., hidden_states: _Optional[_Union[_common_pb2.HiddenStates, _Mapping]] = ..., max_length: _Optional[int] = ...) -> None: ...

class ProposeResponse(_message.Message):
    __slots__ = ("proposal", "predrafts")
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    PREDRAFTS_FIELD_NUMBER: _ClassVar[int]
    proposal: Proposal
    predrafts: PredraftUpdate
    def __init__(self, proposal: _Optional[_Union[Proposal, _Mapping]] = ..., predrafts: _Optional[_Union[PredraftUpdate, _Mapping]] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("context_length", "draft_token_ids", "sequence_length", "timings")
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    context_length: int
    draft_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sequence_length: int
    timings: _common_pb2.ServerTimings
    def __init__(self, context_length: _Optional[int] = ..., draft_token_ids: _Optional[_Iterable[int]] = ..., sequence_length: _Optional[int] = ..., timings: _Optional[_Union[_common_pb2.ServerTimings, _Mapping]] = ...) -> None: ...

class PredraftUpdate(_message.Message):
    __slots__ = ("context_length", "predrafts", "elapsed_ns")
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PREDRAFTS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_NS_FIELD_NUMBER: _ClassVar[int]
    context_length: int
    predrafts: _containers.RepeatedCompositeFieldContainer[Predraft]
    elapsed_ns: int
    def __init__(self, context_length: _Optional[int] = ..., predrafts: _Optional[_Iterable[_Union[Predraft, _Mapping]]] = ..., elapsed_ns: _Optional[int] = ...) -> None: ...

class Predraft(_message.Message):
    __slots__ = ("assumed_token_ids", "draft_token_ids", "forward_ns")
    ASSUMED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_NS_FIELD_NUMBER: _ClassVar[int]
    assumed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    draft_token_ids: _containers.RepeatedScalarFieldContainer[int]
    forward_ns: int
    def __init__(self, assumed_token_ids: _Optional[_Iterable[int]] = ..., draft_token_ids: _Optional[_Iterable[int]] = ..., forward_ns: _Optional[int] = ...) -> None: ...
