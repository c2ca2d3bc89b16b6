"""The loop: propose, verify, commit.

The committed tokens are the only truth. Draft and target hold copies that each
step brings up to date, so a rejection, a full acceptance and a fresh session are
the same case: both are told the committed tokens.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from orchestrator.distance import Distance
from orchestrator.latency import CriticalPath
from orchestrator.lengths import LengthPolicy
from orchestrator.partners import Drafter, Verifier
from orchestrator.proposer import Proposer
from outrider import telemetry


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens that one verification committed: accepted draft tokens, then the target's own."""

    token_ids: tuple[int, ...]
    num_draft_tokens: int
    num_accepted_tokens: int
    was_prepared: bool = False
    """Whether the draft tokens were there before the verdict that they follow."""
    was_looked_up: bool = False
    """Whether the draft tokens stood in the text before."""
    was_sent_ahead: bool = False
    """Whether it was sent before the verdict on the step before was known."""
    replaced_stale: bool = False
    """Whether another was sent ahead in its place, which assumed a wrong verdict."""
    was_missed: bool = False
    """Whether it had no draft tokens since none were prepared, and it went on without."""

    @property
    def source(self) -> str:
        """Where its draft tokens came from."""
        if self.was_looked_up:
            return "looked up"
        return "prepared" if self.was_prepared else "drafted"


async def decode(
    prompt: Sequence[int],
    max_length: int,
    verifier: Verifier,
    drafter: Drafter | None,
    lengths: LengthPolicy,
    path: CriticalPath,
    num_branches: int | None = 0,
    looks_up: bool = False,
    distance: Distance | None = None,
) -> AsyncGenerator[Step, None]:
    """Continues `prompt` until the sequence has `max_length` tokens.

    Without a drafter, and where `lengths` says 0, a step commits one token: the target
    alone, through the same code. With `num_branches`, the drafter works while the
    verifier does, on so many outcomes of the verification (None: as many as pay). With
    `looks_up`, what followed the last tokens when they stood in the text before is a draft,
    too, which costs nothing.
    With a `distance`, which learns how far the target is, verifications of what is prepared
    are sent ahead if it is far.

    Raises:
        OutriderError: the verifier failed. A failing drafter is dropped instead.
    """
    tokens = list(prompt)
    proposer = Proposer(drafter, lengths, num_branches, looks_up, path, distance)
    proposer.prefill(tokens)
    try:
        with telemetry.span("prefill"):
            num_more_tokens = proposer.num_more_tokens(max_length - len(tokens) - 1)
            verdict = await verifier.verify(tokens, (), num_more_tokens=num_more_tokens)
        path.spend("prefill_target")
        tokens.append(verdict.next_token_id)
        yield Step((verdict.next_token_id,), 0, 0)
        while len(tokens) < max_length:
            room = max_length - len(tokens) - 1
            with telemetry.span("step") as span:
                draft = await proposer.propose(tokens, room, verifier.ahead, verifier.goes_on)
                path.spend("orchestrator")
                foresight = proposer.foresight(tokens, draft, room)
                num_more_tokens = 0 if draft else proposer.num_more_tokens(room)
                verdict = await verifier.verify(tokens, draft, foresight, num_more_tokens)
                waited_ns = path.spend_waiting("verify", verdict.timings)
                span.set(
                    draft_tokens=len(draft),
                    accepted_tokens=verdict.num_accepted_tokens,
                    was_prepared=proposer.was_prepared,
                    was_looked_up=bool(proposer.looked_up.token_ids),
                    was_sent_ahead=proposer.was_sent_ahead,
                    was_missed=proposer.was_missed,
                )
            proposer.observe(len(draft), verdict, waited_ns)
            committed = (*draft[: verdict.num_accepted_tokens], verdict.next_token_id)
            tokens.extend(committed)
            yield Step(
                committed,
                len(draft),
                verdict.num_accepted_tokens,
                proposer.was_prepared,
                bool(proposer.looked_up.token_ids),
                proposer.was_sent_ahead,
                proposer.replaced_stale,
                proposer.was_missed and not draft,
            )
    finally:
        proposer.close()
