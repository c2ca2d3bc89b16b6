from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class ServerTimings(_message.Message):
    __slots__ = ("queue_ns", "forward_ns", "sample_ns", "total_ns", "batch_tokens", "batch_sessions", "num_threads")
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_NS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    queue_ns: int
    forward_ns: int
    sample_ns: int
    total_ns: int
    batch_tokens: int
    batch_sessions: int
    num_threads: int
    def __init__(self, queue_ns: _Optional[int] = ..., forward_ns: _Optional[int] = ..., sample_ns: _Optional[int] = ..., total_ns: _Optional[int] = ..., batch_tokens: _Optional[int] = ..., batch_sessions: _Optional[int] = ..., num_threads: _Optional[int] = ...) -> None: ...

class GetModelInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelInfoResponse(_message.Message):
    __slots__ = ("model_id", "revision", "dtype", "device", "max_context_length", "vocab_size", "vocabulary_fingerprint", "eos_token_ids", "num_slots", "num_free_slots", "version", "token_ns", "wire_version", "num_threads", "batch_invariance", "reads_hidden_states", "num_layers", "hidden_size", "gives_hidden_states", "max_cached_tokens", "num_cached_tokens", "step_ns")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_SLOTS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_SLOTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_NS_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    BATCH_INVARIANCE_FIELD_NUMBER: _ClassVar[int]
    READS_HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    GIVES_HIDDEN_STATES_FIELD_NUMBER: _ClassVar[int]
    MAX_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_NS_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    revision: str
    dtype: str
    device: str
    max_context_length: int
    vocab_size: int
    vocabulary_fingerprint: str
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    num_slots: int
    num_free_slots: int
    version: str
    token_ns: int
    wire_version: int
    num_threads: int
    batch_invariance: BatchInvariance
    reads_hidden_states: HiddenStateSpec
    num_layers: int
    hidden_size: int
    gives_hidden_states: bool
    max_cached_tokens: int
    num_cached_tokens: int
    step_ns: int
    def __init__(self, model_id: _Optional[str] = ..., revision: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., max_context_length: _Optional[int] = ..., vocab_size: _Optional[int] = ..., vocabulary_fingerprint: _Optional[str] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., num_slots: _Optional[int] = ..., num_free_slots: _Optional[int] = ..., version: _Optional[str] = ..., token_ns: _Optional[int] = ..., wire_version: _Optional[int] = ..., num_threads: _Optional[int] = ..., batch_invariance: _Optional[_Union[BatchInvariance, _Mapping]] = ..., reads_hidden_states: _Optional[_Union[HiddenStateSpec, _Mapping]] = ..., num_layers: _Optional[int] = ..., hidden_size: _Optional[int] = ..., gives_hidden_states: _Optional[bool] = ..., max_cached_tokens: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ..., step_ns: _Optional[int] = ...) -> None: ...

class HiddenStateSpec(_message.Message):
    __slots__ = ("layers", "hidden_size", "window")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    hidden_size: int
    window: int
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., hidden_size: _Optional[int] = ..., window: _Optional[int] = ...) -> None: ...

class HiddenStates(_message.Message):
    __slots__ = ("first_index", "num_tokens", "data")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    num_tokens: int
    data: bytes
    def __init__(self, first_index: _Optional[int] = ..., num_tokens: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class BatchInvariance(_message.Message):
    __slots__ = ("holds", "max_tokens", "across_threads")
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACROSS_THREADS_FIELD_NUMBER: _ClassVar[int]
    holds: bool
    max_tokens: int
    across_threads: bool
    def __init__(self, holds: _Optional[bool] = ..., max_tokens: _Optional[int] = ..., across_threads: _Optional[bool] = ...) -> None: ...

class GetTokenizerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTokenizerResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...
