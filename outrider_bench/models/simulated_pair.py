"""A pair whose steps take what they are said to take, for the policy to find its way in.

It tells, without a machine's noise of today, what finding out about a draft costs, and
whether one that does not pay is left alone: `python -m benchmarks.policy`.
"""

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.policy.adaptive import AdaptivePolicy
from orchestrator.policy.cost_model import PairState
from orchestrator.policy.draft_policy import Decision, DraftPolicy, StepContext
from orchestrator.step import DraftSource, DraftState, StepRecord

# What a draft that has predrafted for the likeliest outcomes hits of the results: a part in any
# case, and more the better it is. About as the default pair does at chosen acceptance.
_LEAST_HITS, _MORE_HITS, _MOST_HITS = 0.35, 0.6, 0.95
# The machine gets slower and faster, by little from step to step.
_DRIFT = 0.015
_SLOWEST, _FASTEST = 1.2, 0.85
# One step in so many is disturbed, and takes up to twice as long.
_DISTURBED = 0.02
# Steps of a draft that reads what it has missed: a whole prompt, or a part of the text.
_STEPS_TO_READ, _STEPS_TO_CATCH_UP = 4, 3
# Tokens of a run-ahead.
_RUN_AHEAD = 32


@dataclass(frozen=True)
class Machine:
    """What steps take on it, in milliseconds."""

    name: str
    alone: float
    """The target alone."""
    token: float
    """What each draft token adds."""
    draft: float
    """The draft's first token; others take `next_draft`."""
    next_draft: float
    beside: float = 0.0
    """What a draft that works beside it adds."""
    reading: float = 0.0
    """What a draft that reads beside it adds."""
    after_hit: float = 1.0
    """How many times as long they take after a hit: a draft that missed may begin nothing."""
    noise: float = 0.03
    round_trip: float = 0.0
    """To the target. It runs ahead where the policy lets it."""


MACHINES = (
    # As two hosts of one core each that share a memory, with the default pair; and two that do not.
    Machine("one memory", 37, 7, 13, 11, beside=4, reading=3),
    Machine("hosts of their own", 37, 6, 13, 11),
    # With instructions for it, passes are faster, and draft and target more alike.
    Machine("a faster CPU", 15, 2.5, 6, 5, beside=1, reading=1),
    # Two threads of each on the same two cores.
    Machine("the same cores", 28, 5, 20, 20, beside=1, reading=50, after_hit=3.5, noise=0.12),
    # Two threads of the target on two cores, and a feature draft, which predrafts on one of them.
    Machine("shared with a feature draft", 16, 1.4, 2.7, 0.9, beside=12, reading=3),
    # A verification takes no longer for a few tokens more.
    Machine("GPUs", 10, 0.05, 2, 1.5, beside=0.1, reading=0.2),
    # A core for each, and a feature draft.
    Machine("20 ms to the target", 20, 1, 1.6, 0.4, beside=0.3, reading=0.3, round_trip=20),
)


class SimulatedPair:
    """Texts that a policy writes; `ms` and `ms_alone` are what they took, and would have.

    Args:
        acceptance: how often a draft token is accepted, given that those before it were.
        predrafts: the draft works while the target does.
    """

    def __init__(
        self, machine: Machine, acceptance: float, chance: random.Random, predrafts: bool = True
    ) -> None:
        self.acceptance = acceptance
        self.state = PairState(token_ns=machine.token * 1e6)
        self.state.reset_draft(machine.next_draft * 1e6)
        self.ms = 0.0
        self.ms_alone = 0.0
        self.machine = machine
        self._chance = chance
        self._predrafts = predrafts
        self._slowness = 1.0

    @property
    def speedup(self) -> float:
        return self.ms_alone / self.ms

    def write(self, num_tokens: int, policy: DraftPolicy | None = None) -> None:
        """One text more of so many tokens, the one that the prefill brings aside."""
        for _ in self.steps(num_tokens, policy):
            pass

    def steps(self, num_tokens: int, policy: DraftPolicy | None = None) -> Iterator[StepRecord]:
        """The steps of such a text, for texts that are written at the same time."""
        policy = policy or AdaptivePolicy(self.state, self._predrafts)
        machine = self.machine
        # The target alone runs ahead of the prefill, and waits for a round trip after each run.
        self.ms_alone += machine.round_trip * (num_tokens // (1 + _RUN_AHEAD))
        decision = policy.decide(StepContext(DraftState.IDLE))
        server_ns, way_ns = int(machine.alone * 1e6), int(machine.round_trip * 1e6)
        policy.observe(
            StepRecord((0,), is_prefill=True, verify_ns=server_ns + way_ns, server_ns=server_ns)
        )
        draft, to_read, reading = DraftState.IDLE, _STEPS_TO_READ, DraftState.PREFILLING
        is_predrafting = False
        run_ahead = _RUN_AHEAD * decision.runs_ahead  # tokens under way without a request
        while num_tokens > 0:
            self._drift()
            machine = self.machine
            decision = policy.decide(StepContext(draft, is_running_ahead=run_ahead > 0))
            had_predrafts = is_predrafting
            is_predrafting = self._predrafts and decision.drafts and decision.predrafts
            if decision.drafts and to_read == 0:
                way_ms = machine.round_trip
                if run_ahead:  # the pass under way is in vain
                    way_ms += self._chance.random() * machine.alone
                draft, reading, run_ahead = DraftState.ACTIVE, DraftState.CATCHING_UP, 0
                step = self._step(decision, had_predrafts, is_predrafting, num_tokens, way_ms)
            else:
                if decision.drafts:
                    draft, to_read = reading, to_read - 1
                else:
                    draft, to_read = DraftState.IDLE, max(to_read, _STEPS_TO_CATCH_UP)
                ms = machine.alone + machine.reading * decision.drafts
                step = self._record(1, 0, draft, ms, 0.0 if run_ahead else machine.round_trip)
                is_miss = had_predrafts and decision.drafts
                step = dataclasses.replace(step, is_run_ahead=run_ahead > 0, is_cache_miss=is_miss)
                run_ahead = run_ahead - 1 if run_ahead else _RUN_AHEAD * decision.runs_ahead
            policy.observe(step)
            num_tokens -= len(step.token_ids)
            self.ms += step.ns / 1e6
            self.ms_alone += len(step.token_ids) * self._alone_ms
            yield step

    def _step(
        self,
        decision: Decision,
        had_predrafts: bool,
        is_predrafting: bool,
        num_tokens: int,
        way_ms: float,
    ) -> StepRecord:
        """A step of a draft that has read the text."""
        machine, draft_ns = self.machine, 0
        hits = min(_MOST_HITS, _LEAST_HITS + _MORE_HITS * self.acceptance)
        if is_hit := had_predrafts and self._chance.random() < hits:
            ready = 1 + max(0, int((machine.alone - machine.draft) / machine.next_draft))
            length = min(ready, decision.predraft_length, num_tokens - 1)
            ms = (machine.alone + machine.token * length) * machine.after_hit
        else:
            length = min(decision.miss_length, num_tokens - 1)
            ms = machine.alone + machine.token * length
            if length:
                draft_ns = self._ns(machine.draft + (length - 1) * machine.next_draft)
        accepted = 0
        while accepted < length and self._chance.random() < self.acceptance:
            accepted += 1
        ms += machine.beside * is_predrafting
        step = self._record(1 + accepted, length, DraftState.ACTIVE, ms, way_ms)
        source = DraftSource.DRAFTED if length else DraftSource.NONE
        return dataclasses.replace(
            step,
            source=DraftSource.CACHED if is_hit else source,
            is_predrafting=is_predrafting,
            is_cache_miss=had_predrafts and not is_hit,
            draft_ns=draft_ns,
        )

    def _record(
        self, num_tokens: int, length: int, draft: DraftState, ms: float, way_ms: float
    ) -> StepRecord:
        """Of a step that commits so many tokens, and whose pass takes so long on average."""
        server_ns = self._ns(ms)
        return StepRecord(
            (0,) * num_tokens,
            length,
            num_tokens - 1,
            draft_state=draft,
            verify_ns=server_ns + int(way_ms * 1e6),
            server_ns=server_ns,
        )

    def _drift(self) -> None:
        slowness = self._slowness * self._chance.uniform(1 - _DRIFT, 1 + _DRIFT)
        self._slowness = max(_FASTEST, min(_SLOWEST, slowness))

    @property
    def _alone_ms(self) -> float:
        return self.machine.alone * self._slowness * (1 + _DISTURBED / 2)

    def _ns(self, ms: float) -> int:
        """What takes so long on average, this time."""
        ms *= self._slowness * max(0.8, self._chance.gauss(1, self.machine.noise))
        if self._chance.random() < _DISTURBED:
            ms *= self._chance.uniform(1, 2)
        return int(ms * 1e6)
