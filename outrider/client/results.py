"""The results that a client gets, and their conversion from protobuf."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from outrider.protocol.codec import model_info_from_wire
from outrider.protocol.messages import (
    Interval,
    ModelInfo,
    Outage,
    PolicyEstimates,
    SpeculationStats,
    TextPiece,
)
from outrider.v1 import generation_pb2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens."""

    num_prompt_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Durations in nanoseconds; the stages of `critical_path` add up to `wall_ns`."""

    wall_ns: int
    ttft_ns: int
    tpot_ns: int
    critical_path: dict[str, int]
    hidden: dict[str, int]


@dataclass(frozen=True, slots=True)
class Generation:
    """A generated text. `trace` is empty unless it was requested.

    `finish_reason` is "stop", "length" (`max_new_tokens`) or "context_limit".
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    seed: int
    usage: Usage
    speculation: SpeculationStats
    latency: Latency
    trace: list[Interval] = field(default_factory=list)
    num_target_threads: int = 0
    """CPU threads of the target's last forward pass; 0: unknown."""
    draft_failure: str = ""
    """Why all or part of the text was generated without the draft; empty if it did not fail."""
    estimates: PolicyEstimates | None = None
    """The draft policy's; None if it decided nothing: a fixed draft length, or no draft."""

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, as printed by `outrider generate --json`; without the trace."""
        values = asdict(self)
        del values["trace"]
        for rate in ("draft_acceptance_rate", "mean_acceptance_length"):
            values["speculation"][rate] = getattr(self.speculation, rate)
        return values


@dataclass(frozen=True, slots=True)
class ServerActivity:
    """The activity of an orchestrator, now and since its start; see the proto's ServerActivity."""

    uptime_ns: int = 0
    num_queued_requests: int = 0
    num_running_requests: int = 0
    num_ended_requests: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_steps: int = 0
    num_cache_hits: int = 0
    num_lookup_steps: int = 0
    draft_tokens_by_position: list[int] = field(default_factory=list)
    accepted_tokens_by_position: list[int] = field(default_factory=list)
    critical_path: dict[str, int] = field(default_factory=dict)
    hidden: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The models that an orchestrator serves, and its activity."""

    version: str
    target: ModelInfo
    draft: ModelInfo | None
    default_num_predrafts: int
    has_chat_template: bool
    activity: ServerActivity = field(default_factory=ServerActivity)
    draft_outage: Outage | None = None


def generation_from_wire(message: generation_pb2.GenerateResponse) -> Generation:
    latency, speculation = message.latency, message.speculation
    finish_reason = generation_pb2.FinishReason.Name(message.finish_reason)
    return Generation(
        text=message.text,
        token_ids=list(message.token_ids),
        finish_reason=finish_reason.removeprefix("FINISH_REASON_").lower(),
        seed=message.seed,
        usage=_of(Usage, message.usage),
        speculation=_of(
            SpeculationStats,
            speculation,
            acceptance_histogram=list(speculation.acceptance_histogram),
        ),
        latency=_of(
            Latency,
            latency,
            critical_path=_durations(latency.critical_path),
            hidden=_durations(latency.hidden),
        ),
        trace=[_of(Interval, one, counts=dict(one.counts)) for one in message.trace],
        num_target_threads=message.num_target_threads,
        draft_failure=message.draft_failure,
        estimates=(
            _of(PolicyEstimates, message.estimates) if message.HasField("estimates") else None
        ),
    )


def piece_from_wire(message: generation_pb2.TextPiece) -> TextPiece:
    source = generation_pb2.TokenSource.Name(message.source)
    return TextPiece(message.text, message.token_id, source.removeprefix("TOKEN_SOURCE_").lower())


def server_info_from_wire(message: generation_pb2.GetServerInfoResponse) -> ServerInfo:
    activity, has_outage = message.activity, message.HasField("draft_outage")
    return ServerInfo(
        version=message.version,
        target=model_info_from_wire(message.target),
        draft=model_info_from_wire(message.draft) if message.HasField("draft") else None,
        default_num_predrafts=message.default_num_predrafts,
        has_chat_template=message.has_chat_template,
        activity=_of(
            ServerActivity,
            activity,
            draft_tokens_by_position=list(activity.draft_tokens_by_position),
            accepted_tokens_by_position=list(activity.accepted_tokens_by_position),
            critical_path=_durations(activity.critical_path),
            hidden=_durations(activity.hidden),
        ),
        draft_outage=_of(Outage, message.draft_outage) if has_outage else None,
    )


def _of(kind: type[T], message: Any, **converted: Any) -> T:
    """A dataclass of the message's fields of the same names, and of `converted` ones."""
    names = {each.name for each in fields(kind)} - converted.keys()  # type: ignore[arg-type]
    return kind(**{name: getattr(message, name) for name in names}, **converted)


def _durations(stages: Iterable[generation_pb2.StageDuration]) -> dict[str, int]:
    return {stage.stage: stage.duration_ns for stage in stages}
