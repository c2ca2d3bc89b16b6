"""A draft service that checks the hidden states which it is sent, as a feature draft needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import torch

from outrider.v1 import draft_pb2
from tests.support.toy_pair import states_after

Handler = Callable[[Any, Any], Awaitable[None]]


class FeatureChecks:
    """Stands before the handler of a toy draft service. `faults` are what was wrong."""

    def __init__(self, handler: Handler) -> None:
        self.faults: list[str] = []
        self.num_restarts = 0
        """How often hidden states began behind those before."""
        self.num_rows = 0
        self._handler = handler

    async def __call__(self, requests: AsyncIterator[Any], context: Any) -> None:
        stream = CheckedStream(self, requests, context)
        await self._handler(stream, stream)


class CheckedStream:
    """Requests and context of one stream, with the sequence that it is about."""

    def __init__(self, checks: FeatureChecks, requests: AsyncIterator[Any], context: Any) -> None:
        self._checks, self._requests, self._context = checks, requests, context
        self._tokens: list[int] = []
        self._first = self._end = 0  # tokens whose hidden states have been sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def __aiter__(self) -> CheckedStream:
        return self

    async def __anext__(self) -> draft_pb2.ProposeRequest:
        request: draft_pb2.ProposeRequest = await anext(self._requests)
        self._tokens = [*self._tokens[: request.context_length], *request.token_ids]
        self._check(len(self._tokens) > 0, "no tokens")
        if request.HasField("hidden_states"):
            states = request.hidden_states
            if states.first_index > self._end:
                self._checks.num_restarts += 1
                self._first = states.first_index
            self._end = states.first_index + states.num_tokens
            rows = torch.frombuffer(bytearray(states.data), dtype=torch.bfloat16)
            known = states_after(self._tokens)[states.first_index : self._end]
            expected = [list(state.to_bytes(4, "little")) for state in known]
            self._checks.num_rows += states.num_tokens
            self._check(rows.view(-1, 4).int().tolist() == expected, "other hidden states")
        self._check(self._end == len(self._tokens) - 1, "not the last ones")
        self._check(self._end > self._first or self._end == 0, "none at all")
        self._tokens += request.draft_token_ids
        return request

    async def write(self, response: draft_pb2.ProposeResponse) -> None:
        if response.HasField("proposal"):
            self._tokens += response.proposal.draft_token_ids
            del self._tokens[response.proposal.sequence_length :]
        await self._context.write(response)

    def _check(self, agrees: bool, fault: str) -> None:
        if not agrees:
            self._checks.faults.append(fault)
