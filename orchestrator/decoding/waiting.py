"""Waiting for what the draft is about to have predrafted, and for what is worth sending ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from orchestrator.decoding.interfaces import Ahead, Drafter
from outrider.protocol.messages import Predraft


async def predrafted_soon(
    drafter: Drafter, tokens: Sequence[int], patience_ns: float
) -> Predraft | None:
    """What is predrafted for `tokens`, if it is under way and there in time.

    A result that comes in the middle of a draft step would otherwise waste the step.
    """
    now = asyncio.get_running_loop().time
    latest = now() + patience_ns / 1e9
    while drafter.is_coming(tokens) and (seconds_left := latest - now()) > 0:
        await asyncio.wait((drafter.growth(),), timeout=seconds_left)
    return drafter.predrafted(tokens)


async def foresee(
    drafter: Drafter,
    tokens: Sequence[int],
    draft: tuple[int, ...],
    length: int,
    latest: float,
    make: Callable[[Predraft], Ahead],
) -> Ahead:
    """What to send ahead while `draft` is verified behind `tokens`; waits, maybe for ever.

    Args:
        length: how many draft tokens there may be.
        latest: when the target would begin to wait for it, by the loop's clock.
        make: of what is predrafted for full acceptance.
    """
    now = asyncio.get_running_loop().time
    while True:
        growth = drafter.growth()
        predrafted = drafter.likeliest(tokens, draft)
        seconds_left = None
        if predrafted is not None:
            ahead = make(predrafted)
            seconds_left = latest - now()
            is_complete = ahead.looked_up.token_ids or len(ahead.draft_token_ids) == length
            if is_complete or seconds_left <= 0:
                return ahead
        await asyncio.wait((growth,), timeout=seconds_left)
