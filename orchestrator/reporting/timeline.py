"""The trace of one request: what happened when.

All times are on the orchestrator's clock; clocks need not be synchronized. A service reports how
long it worked on a message, and that work lies between the sending of the message and the arrival
of its answer.
"""

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.step import StepRecord
from outrider.protocol.messages import Interval, Predraft, Timings
from outrider.protocol.stages import Track

# About a megabyte on the wire, which takes four.
MAX_INTERVALS = 20_000


@dataclass(frozen=True, slots=True)
class _Sent:
    name: str
    at_ns: int
    num_tokens: int


@dataclass(slots=True)
class _PredraftLane:
    """A lane of predrafts, and what its passes have taken so far."""

    lane: str
    forward_ns: int = 0


class Timeline:
    """Collects the intervals of one request, up to a maximum number.

    Intervals in one lane may be nested, but do not overlap otherwise.
    """

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self._began_ns = self._step_began_ns = time.perf_counter_ns()
        self._lane_ends_ns: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._unanswered: defaultdict[str, deque[_Sent]] = defaultdict(deque)
        self._done_ns: defaultdict[str, int] = defaultdict(int)
        self._draft_began_ns = 0
        self._predrafts: dict[tuple[int, ...], _PredraftLane] = {}

    def stage(self, name: str, begin_ns: int, end_ns: int) -> None:
        """Adds a stage of the critical path."""
        self._add(Track.ORCHESTRATOR, "critical path", name, begin_ns, end_ns)

    def hidden(self, name: str, begin_ns: int, end_ns: int) -> None:
        """Adds work on the text that was done while the next step was running."""
        self._add(Track.ORCHESTRATOR, "text", name, begin_ns, end_ns)

    def step(self, step: StepRecord) -> None:
        """Adds a step, which began where the previous one ended."""
        name = "target alone"
        num_draft, num_accepted = step.num_draft_tokens, step.num_accepted_tokens
        if num_draft:
            name = f"{num_accepted} of {num_draft} accepted, {step.source.value}"
        counts = {"draft_tokens": num_draft, "accepted_tokens": num_accepted}
        self._add(Track.ORCHESTRATOR, "steps", name, self._step_began_ns, step.ended_ns, counts)
        self._step_began_ns = step.ended_ns

    def opened(self, service: str) -> None:
        """Notes that a stream was opened. Messages on an earlier stream will not be answered."""
        self._unanswered[service].clear()

    def sent(self, service: str, name: str, token_ids: Sequence[int]) -> None:
        """Notes that a message with these new tokens was sent. Services answer in order."""
        sent = _Sent(name, time.perf_counter_ns(), len(token_ids))
        self._unanswered[service].append(sent)

    def answered(
        self,
        service: str,
        timings: Timings,
        draft_token_ids: Sequence[int],
        counts: dict[str, int] | None = None,
    ) -> None:
        """Adds the service's work on the oldest unanswered message, whose answer arrived now.

        Time that the service does not account for is network time, half of it in each direction
        (Cristian, 1989); more of it before the work if the service was still busy with the previous
        message.
        """
        now_ns = time.perf_counter_ns()
        sent = self._unanswered[service].popleft()
        total_ns = min(timings.total_ns, now_ns - sent.at_ns)
        begin_ns = sent.at_ns + (now_ns - sent.at_ns - total_ns) // 2
        begin_ns = min(max(begin_ns, self._done_ns[service]), now_ns - total_ns)
        end_ns = self._done_ns[service] = begin_ns + total_ns
        self._add(Track.NETWORK, f"to the {service}", sent.name, sent.at_ns, begin_ns)
        counts = {
            "new_tokens": sent.num_tokens,
            "draft_tokens": len(draft_token_ids),
            **(counts or {}),
        }
        self._add(service, "session", sent.name, begin_ns, end_ns, counts)
        self._split(service, timings, begin_ns, end_ns)
        self._add(Track.NETWORK, f"from the {service}", sent.name, end_ns, now_ns)
        if service == Track.DRAFT:
            self._draft_began_ns = begin_ns
            self._predrafts = {}

    def _split(self, service: str, timings: Timings, begin_ns: int, end_ns: int) -> None:
        """Draws a message's parts one after the other; over several passes they are sums."""
        for name, duration_ns in (
            ("queue", timings.queue_ns),
            ("forward", timings.forward_ns),
            ("sample", timings.sample_ns),
        ):
            part_end_ns = min(begin_ns + duration_ns, end_ns)
            self._append(service, "session", name, begin_ns, part_end_ns, {})
            begin_ns = part_end_ns

    def predrafted(self, since_ns: int, grown: Sequence[Predraft]) -> None:
        """Adds predrafting, reported `since_ns` after the arrival of the last answered message.

        All passes that extended a predraft since its last update are one interval, which ends at
        the time of the report.
        """
        end_ns = min(self._draft_began_ns + since_ns, time.perf_counter_ns())
        for one in grown:
            lane = self._predrafts.get(one.assumed_token_ids)
            if lane is None:
                lane = _PredraftLane(f"predrafts {len(self._predrafts) + 1}")
                self._predrafts[one.assumed_token_ids] = lane
            duration_ns = one.forward_ns - lane.forward_ns
            lane.forward_ns = one.forward_ns
            counts = {
                "assumed_tokens": len(one.assumed_token_ids),
                "predrafted_tokens": len(one.draft_token_ids),
            }
            self._add(Track.DRAFT, lane.lane, "predraft", end_ns - duration_ns, end_ns, counts)

    def _add(
        self,
        track: str,
        lane: str,
        name: str,
        begin_ns: int,
        end_ns: int,
        counts: dict[str, int] | None = None,
    ) -> None:
        """Adds an interval behind the others of its lane, where it overlaps them shortened."""
        begin_ns = max(begin_ns, self._lane_ends_ns[track, lane], self._began_ns)
        end_ns = max(begin_ns, end_ns)
        self._lane_ends_ns[track, lane] = end_ns
        self._append(track, lane, name, begin_ns, end_ns, counts or {})

    def _append(
        self, track: str, lane: str, name: str, begin_ns: int, end_ns: int, counts: dict[str, int]
    ) -> None:
        if end_ns <= begin_ns or len(self.intervals) > MAX_INTERVALS:
            return
        if len(self.intervals) == MAX_INTERVALS:
            name, counts = "the trace is full", {}
        self.intervals.append(
            Interval(track, lane, name, begin_ns - self._began_ns, end_ns - begin_ns, counts)
        )
