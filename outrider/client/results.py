"""The results that a client gets: texts, and how they came about."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from outrider.protocol.messages import Interval, ModelInfo, Outage, SpeculationStats


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
    """A generated text; `trace` is empty unless it was asked for.

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
    """CPU threads of the target's last forward pass; 0 if unknown."""
    draft_failure: str = ""
    """Why the draft did not take part, or not to the end; empty if it did."""

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, as `outrider generate --json` prints them; no trace."""
        fields = dataclasses.asdict(self)
        del fields["trace"]
        for rate in ("draft_acceptance_rate", "mean_acceptance_length"):
            fields["speculation"][rate] = getattr(self.speculation, rate)
        return fields


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
