"""Waiting for what the draft is about to have prepared."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from orchestrator.partners import Drafter
from outrider.messages import Prepared


async def prepared_soon(
    drafter: Drafter, tokens: Sequence[int], patience_ns: float
) -> Prepared | None:
    """What is prepared for `tokens`, if it is under way and there in time.

    A verdict that comes in the middle of a draft step would otherwise waste the step.
    """
    now = asyncio.get_running_loop().time
    latest = now() + patience_ns / 1e9
    while drafter.is_coming(tokens) and (seconds_left := latest - now()) > 0:
        await asyncio.wait((drafter.growth(),), timeout=seconds_left)
    return drafter.prepared(tokens)
