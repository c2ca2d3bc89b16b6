"""The decode loop: propose, verify, commit.

The committed tokens are the only state. Draft and target hold copies, which each step brings up
to date: a service is told how many tokens to keep and which to append. So a rejection, a full
acceptance and a new session are handled alike. A token is committed when the result of its
verification arrives.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from collections.abc import Set as AbstractSet

from orchestrator.decoding.interfaces import Verifier
from orchestrator.decoding.proposer import Proposer
from orchestrator.step import DraftTokens, StepRecord, Wait
from outrider.observability import telemetry
from outrider.protocol.messages import VerifyResult
from outrider.protocol.stages import Stage


async def decode(
    prompt: Sequence[int],
    max_length: int,
    verifier: Verifier,
    proposer: Proposer,
    end_ids: AbstractSet[int] = frozenset(),
) -> AsyncGenerator[StepRecord, None]:
    """Continues `prompt` until the sequence has `max_length` tokens, or one of `end_ids`.

    A step without draft tokens commits one token. The prefill is such a step, and so is every
    step that the target takes alone.

    Raises:
        OutriderError: the verifier failed. If the draft fails, the text continues without it.
    """
    tokens = list(prompt)
    try:
        while len(tokens) < max_length:
            room = max_length - len(tokens) - 1  # for draft tokens
            is_prefill = len(tokens) == len(prompt)
            began_ns = time.perf_counter_ns()
            with telemetry.span("prefill" if is_prefill else "step") as span:
                draft, lookahead = await proposer.propose(tokens, room, verifier)
                verify_ns = time.perf_counter_ns()
                result = await verifier.verify(tokens, draft.token_ids, lookahead)
                step = _record(draft, result, proposer, is_prefill, began_ns, verify_ns)
                span.set(
                    draft_tokens=step.num_draft_tokens,
                    accepted_tokens=step.num_accepted_tokens,
                    source=step.source.value,
                    is_cache_miss=step.is_cache_miss,
                    is_pipelined=step.is_pipelined,
                )
            proposer.observe(step)
            tokens.extend(step.token_ids)
            yield step
            if not end_ids.isdisjoint(step.token_ids):
                break
    finally:
        proposer.close()


async def one_ahead(
    steps: AsyncGenerator[StepRecord, None],
) -> AsyncGenerator[StepRecord, None]:
    """Yields each of `steps` once the next one has started.

    So the caller turns a step into text and delivers it while draft and target work.
    """
    done: asyncio.Queue[StepRecord | None] = asyncio.Queue()
    turn = asyncio.Semaphore(1)

    async def work() -> None:
        async for step in steps:
            done.put_nowait(step)
            await turn.acquire()  # at once, if the caller is done with the step before

    task = asyncio.create_task(work())
    task.add_done_callback(lambda _: done.put_nowait(None))
    try:
        while (step := await done.get()) is not None:
            yield step
            turn.release()
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await steps.aclose()


def _record(
    draft: DraftTokens,
    result: VerifyResult,
    proposer: Proposer,
    is_prefill: bool,
    began_ns: int,
    verify_ns: int,
) -> StepRecord:
    """The record of a step that began at `began_ns`, and its verification at `verify_ns`."""
    ended_ns = time.perf_counter_ns()
    stage = Stage.PREFILL_TARGET if is_prefill else Stage.VERIFY_COMPUTE
    verify, waits = Wait(stage, verify_ns, ended_ns, result.timings), proposer.waits
    on_draft = [wait for wait in waits if wait.stage is Stage.DRAFT_COMPUTE]
    return StepRecord(
        token_ids=(*draft.token_ids[: result.num_accepted_tokens], result.next_token_id),
        num_draft_tokens=len(draft.token_ids),
        num_accepted_tokens=result.num_accepted_tokens,
        source=draft.source,
        draft_state=proposer.draft.state,
        is_prefill=is_prefill,
        is_cache_miss=draft.is_cache_miss,
        is_pipelined=draft.is_pipelined,
        replaces_stale=draft.replaces_stale,
        is_run_ahead=result.is_run_ahead,
        is_predrafting=proposer.draft.is_predrafting,
        match_length=draft.match_length,
        draft_ns=sum(wait.ns for wait in on_draft if wait.timings is not None),
        cache_wait_ns=sum(wait.ns for wait in on_draft if wait.timings is None),
        verify_ns=verify.ns,
        server_ns=result.timings.total_ns,
        batch_tokens=result.timings.batch_tokens,
        batch_sessions=result.timings.batch_sessions,
        num_target_threads=result.timings.num_threads,
        num_predrafted_tokens=proposer.draft.num_predrafted_tokens,
        began_ns=began_ns,
        ended_ns=ended_ns,
        waits=(*waits, verify),
        hidden_draft_ns=draft.hidden_draft_ns,
        hidden_prefill_ns=proposer.hidden_prefill_ns,
    )
