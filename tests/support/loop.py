"""The loop with models that are functions, and a policy that a test scripts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.decoding.decoder import decode
from orchestrator.decoding.proposer import Proposer
from orchestrator.policy.draft_policy import Decision, StepContext
from orchestrator.step import DraftState, StepRecord
from tests.support.fakes import FakeDrafter, FakeVerifier, NextToken

PROMPT = [1, 2, 3]


def target_model(tokens: Sequence[int]) -> int:
    return (sum(tokens) * 7 + len(tokens)) % 50


def unrelated_model(tokens: Sequence[int]) -> int:
    return (sum(tokens) * 3 + 1) % 50


def mostly_right_model(tokens: Sequence[int]) -> int:
    return target_model(tokens) if len(tokens) % 4 else 0


def repeating_model(tokens: Sequence[int]) -> int:
    return 60 + len(tokens) % 7


def as_much_as_wanted(tokens: Sequence[int]) -> int:
    return 99


def plain_decoding(
    prompt: Sequence[int], max_length: int, target: NextToken = target_model
) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < max_length:
        tokens.append(target(tokens))
    return tokens[len(prompt) :]


def wants(k: int, **fields: Any) -> Decision:
    """The decision for k draft tokens, whoever has them."""
    decision = Decision(drafts=k > 0, predraft_length=k, miss_length=k, lookup_length=k)
    return dataclasses.replace(decision, **fields)


class ScriptedPolicy:
    """Decides as a test says: always alike, or step by step, the prefill first."""

    def __init__(self, decide: Decision | Callable[[StepContext], Decision]) -> None:
        self._decide = decide
        self.records: list[StepRecord] = []

    def decide(self, context: StepContext) -> Decision:
        decision = self._decide if isinstance(self._decide, Decision) else self._decide(context)
        if context.draft in (DraftState.ABSENT, DraftState.LOST):
            return dataclasses.replace(decision, drafts=False, keeps_up=False)
        return decision

    def observe(self, step: StepRecord) -> None:
        self.records.append(step)


def in_steps(*decisions: Decision) -> ScriptedPolicy:
    """One decision after the other; the last one stays."""
    left = list(decisions)
    return ScriptedPolicy(lambda _: left.pop(0) if len(left) > 1 else left[0])


def far(k: int) -> Decision:
    """As for a target that is far away: it pipelines, or runs ahead without draft tokens."""
    return wants(k, pipelines=True, runs_ahead=k == 0)


async def run(
    drafter: FakeDrafter | None,
    policy: int | Decision | ScriptedPolicy,
    max_length: int = 40,
    num_predrafts: int = 0,
    looks_up: bool = False,
    target: NextToken | FakeVerifier = target_model,
    prompt: Sequence[int] = PROMPT,
) -> list[StepRecord]:
    """The steps of a text; an integer is a draft length."""
    if isinstance(policy, int):
        policy = wants(policy)
    if isinstance(policy, Decision):
        policy = ScriptedPolicy(policy)
    verifier = target if isinstance(target, FakeVerifier) else FakeVerifier(target)
    proposer = Proposer(drafter, policy, num_predrafts, looks_up)
    return [step async for step in decode(prompt, max_length, verifier, proposer)]


def text(steps: Sequence[StepRecord]) -> list[int]:
    return [token_id for step in steps for token_id in step.token_ids]
