"""The same loop with draft and target inside one process, sequentially and without gRPC."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from draft_service.drafters.model import ModelDrafterSession
from draft_service.service import load_drafter
from orchestrator.decoding.decoder import decode
from orchestrator.decoding.interfaces import Drafter, Lookahead
from orchestrator.decoding.proposer import Proposer
from orchestrator.policy.adaptive import AdaptivePolicy
from orchestrator.policy.cost_model import PairState
from orchestrator.policy.draft_policy import DraftPolicy, FixedLength
from orchestrator.sessions.hidden_state_window import HiddenStateWindow
from orchestrator.sessions.sequence_sync import SequenceSync
from outrider.engine.options import EngineOptions
from outrider.errors import OutriderError
from outrider.protocol.hidden_states import HiddenStateSpec
from outrider.protocol.messages import PredraftPlan, Proposal, SamplingParams, VerifyResult
from outrider.serving.loading import load_served_model, wait_for_own_thread
from outrider_bench.runs import Run, Task
from target_service.verifier import Verifier, VerifierSession

_loaded: dict[str, Any] = {}


def load(target: EngineOptions, draft: EngineOptions) -> None:
    """Loads both models; called once in the worker process."""
    engine, _ = wait_for_own_thread(lambda: load_served_model(target, lambda what: None))
    _loaded["max_context_length"] = engine.max_context_length
    _loaded["verifier"] = Verifier(engine)
    _loaded["drafter"] = wait_for_own_thread(lambda: load_drafter(draft, 0))[1]
    _loaded["pair"] = PairState(token_ns=1e9 * engine.batch_limits.token_seconds)
    _loaded["pair"].reset_draft(1e9 * _loaded["drafter"].engine.batch_limits.step_seconds)


def generate(prompt: list[int], task: Task, k: int | None, looks_up: bool) -> Run:
    """Continues the prompt's tokens; the policy chooses the draft lengths if k is None."""
    return asyncio.run(_generate(prompt, task, k, looks_up))


async def _generate(prompt: list[int], task: Task, k: int | None, looks_up: bool) -> Run:
    pair = _loaded["pair"]
    params = SamplingParams(temperature=task.temperature, seed=task.seed)
    began = time.perf_counter()
    first = 0.0
    drafter, verifier = _loaded["drafter"].open_session(), _loaded["verifier"].open_session()
    window = None
    if (spec := _hidden_states()) is not None:
        window = HiddenStateWindow(spec)
        verifier.give_hidden_states(spec)
    tokens: list[int] = []
    policy: DraftPolicy = (
        AdaptivePolicy(pair, predrafts=False) if k is None else FixedLength(pair, k)
    )
    local_drafter = LocalDrafter(drafter, params, window)
    local_verifier = LocalVerifier(verifier, params, window)
    proposer = Proposer(local_drafter, policy, num_predrafts=0, looks_up=looks_up)
    max_length = len(prompt) + task.max_new_tokens
    async for step in decode(prompt, max_length, local_verifier, proposer):
        tokens.extend(step.token_ids)
        first = first or time.perf_counter()
    drafter.close()
    verifier.close()
    later_ms = (time.perf_counter() - first) * 1e3
    return Run(tokens, (first - began) * 1e3, later_ms / max(1, len(tokens) - 1))


def _hidden_states() -> HiddenStateSpec | None:
    """Those of the target that the draft reads."""
    spec: HiddenStateSpec | None = _loaded["drafter"].engine.reads_hidden_states
    return None if spec is None else spec.of_target(_loaded["verifier"].engine.num_layers)


class LocalDrafter(Drafter):
    """On a session of this process, without predrafts."""

    def __init__(
        self, session: ModelDrafterSession, params: SamplingParams, window: HiddenStateWindow | None
    ) -> None:
        self.max_context_length = _loaded["max_context_length"]
        self.num_predrafted_tokens = 0
        self._session = session
        self._params = params
        self._sync = SequenceSync()
        self._window = window
        self._num_states = 0

    async def until_readable(self, tokens: Sequence[int]) -> None:
        if self._window is not None:
            await self._window.until(len(tokens) - 1)

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
    ) -> Proposal:
        context_length, token_ids = self._sync.difference(tokens)
        states = None
        if self._window is not None:
            states = self._window.between(self._num_states, len(tokens) - 1)
            self._num_states = states.end
        proposal = await self._session.propose(
            context_length, token_ids, num_speculative_tokens, self._params, None, states
        )
        self._sync.hold(tokens, proposal.draft_token_ids, proposal.sequence_length)
        return proposal

    def close(self, reason: OutriderError | None = None) -> None:
        self._session.close()


class LocalVerifier:
    """`orchestrator.decoding.interfaces.Verifier` on a session of this process."""

    pipelined = None
    is_running_ahead = False

    def __init__(
        self, session: VerifierSession, params: SamplingParams, window: HiddenStateWindow | None
    ) -> None:
        self._session = session
        self._params = params
        self._sync = SequenceSync()
        self._window = window

    async def verify(
        self,
        tokens: Sequence[int],
        draft_token_ids: Sequence[int],
        lookahead: Lookahead | None = None,
    ) -> VerifyResult:
        """Ignores a lookahead, since there is no round trip to hide."""
        context_length, token_ids = self._sync.difference(tokens)
        result = await self._session.verify(
            context_length, token_ids, draft_token_ids, self._params
        )
        self._sync.hold(tokens, draft_token_ids, result.sequence_length)
        if self._window is not None and result.hidden_states is not None:
            self._window.add(result.hidden_states)
        return result
