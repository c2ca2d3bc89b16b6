"""The activity of a model service, now and since its start, in plain numbers. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider.observability.distribution import Distribution, powers_of_two

if TYPE_CHECKING:
    from outrider.engine.engine import Engine
    from outrider.engine.scheduling.scheduler import Scheduler


@dataclass
class PassCounts:
    """Distributions over forward passes: jobs that shared one, its tokens, its time."""

    jobs: Distribution = field(default_factory=lambda: Distribution(powers_of_two(1, 7)))
    tokens: Distribution = field(default_factory=lambda: Distribution(powers_of_two(1, 12)))
    duration_ns: Distribution = field(
        default_factory=lambda: Distribution(powers_of_two(1_000_000, 11))
    )

    def count(self, chunk_lengths: Sequence[int], duration_ns: int) -> None:
        self.jobs.add(len(chunk_lengths))
        self.tokens.add(sum(chunk_lengths))
        self.duration_ns.add(duration_ns)


@dataclass(frozen=True, slots=True)
class ModelActivity:
    """The activity of a draft or target service at one moment."""

    num_slots: int
    num_free_slots: int
    num_waiting_sessions: int
    num_pending_jobs: int
    num_reused_tokens: int
    kv_bytes: int
    num_threads: int
    passes: PassCounts


def activity_of(engine: Engine, scheduler: Scheduler, slots_per_session: int = 1) -> ModelActivity:
    """The activity of an engine and its scheduler, in sessions of `slots_per_session` slots."""
    return ModelActivity(
        num_slots=engine.cache.num_slots // slots_per_session,
        num_free_slots=scheduler.num_free_slots // slots_per_session,
        num_waiting_sessions=scheduler.num_waiting,
        num_pending_jobs=scheduler.num_jobs,
        num_reused_tokens=scheduler.num_reused_tokens,
        kv_bytes=engine.cache.num_bytes,
        num_threads=scheduler.threads.current,
        passes=engine.passes,
    )
