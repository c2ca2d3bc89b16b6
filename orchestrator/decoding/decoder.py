"""The loop: propose, verify, commit.

The committed tokens are the only truth. Draft and target hold copies that each
step brings up to date, so a rejection, a full acceptance and a fresh session are
the same case: both are told the committed tokens.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from orchestrator.decoding.drafted import NONE_DRAFTED, Drafted
from orchestrator.decoding.interfaces import Drafter, Verifier
from orchestrator.decoding.proposer import Proposer
from orchestrator.policy.draft_length import LengthPolicy
from orchestrator.policy.round_trip import Distance
from orchestrator.reporting.latency import CriticalPath
from outrider.observability import telemetry


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens that one verification committed: accepted draft tokens, then the target's own."""

    token_ids: tuple[int, ...]
    num_accepted_tokens: int = 0
    drafted: Drafted = NONE_DRAFTED

    @property
    def num_draft_tokens(self) -> int:
        return len(self.drafted.token_ids)

    @property
    def is_cache_miss(self) -> bool:
        """Whether it had no draft tokens since none were predrafted, and it went on without."""
        return self.drafted.is_cache_miss and not self.drafted.token_ids


async def decode(
    prompt: Sequence[int],
    max_length: int,
    verifier: Verifier,
    drafter: Drafter | None,
    lengths: LengthPolicy,
    path: CriticalPath,
    num_predrafts: int | None = 0,
    looks_up: bool = False,
    distance: Distance | None = None,
) -> AsyncGenerator[Step, None]:
    """Continues `prompt` until the sequence has `max_length` tokens.

    Without a drafter, and where `lengths` says 0, a step commits one token: the target
    alone, through the same code. With `num_predrafts`, the drafter works while the
    verifier does, on so many outcomes of the verification (None: as many as pay). With
    `looks_up`, what followed the last tokens when they stood in the text before is a draft,
    too, which costs nothing.
    With a `distance`, which learns how far the target is, verifications of what is predrafted
    are sent ahead if it is far.

    Raises:
        OutriderError: the verifier failed. A failing drafter is dropped instead.
    """
    tokens = list(prompt)
    proposer = Proposer(drafter, lengths, num_predrafts, looks_up, path, distance)
    proposer.prefill(tokens)
    try:
        with telemetry.span("prefill"):
            num_run_ahead_tokens = proposer.num_run_ahead_tokens(max_length - len(tokens) - 1)
            result = await verifier.verify(tokens, (), num_run_ahead_tokens=num_run_ahead_tokens)
        path.spend("prefill_target")
        tokens.append(result.next_token_id)
        yield Step((result.next_token_id,))
        while len(tokens) < max_length:
            room = max_length - len(tokens) - 1
            with telemetry.span("step") as span:
                drafted = await proposer.propose(tokens, room, verifier.ahead, verifier.goes_on)
                draft = drafted.token_ids
                path.spend("orchestrator")
                foresight = proposer.foresight(tokens, drafted, room)
                num_run_ahead_tokens = 0 if draft else proposer.num_run_ahead_tokens(room)
                result = await verifier.verify(tokens, draft, foresight, num_run_ahead_tokens)
                waited_ns = path.spend_waiting("verify", result.timings)
                span.set(
                    draft_tokens=len(draft),
                    accepted_tokens=result.num_accepted_tokens,
                    is_cache_hit=drafted.is_cache_hit,
                    was_looked_up=drafted.was_looked_up,
                    is_pipelined=drafted.is_pipelined,
                    is_cache_miss=drafted.is_cache_miss,
                )
            proposer.observe(drafted, result, waited_ns)
            committed = (*draft[: result.num_accepted_tokens], result.next_token_id)
            tokens.extend(committed)
            yield Step(committed, result.num_accepted_tokens, drafted)
    finally:
        proposer.close()
