"""The draft as the loop sees it: a session over a gRPC stream.

The loop hands over all committed tokens; only what the service lacks travels.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.reporting.timeline import DRAFT, Timeline
from orchestrator.sessions.sequence_sync import Mirror
from orchestrator.sessions.stream import SessionStream
from outrider.errors import OutriderError, ServiceUnavailable
from outrider.protocol.codec import (
    prepared_from_wire,
    proposal_from_wire,
    sampling_to_wire,
    timings_from_wire,
)
from outrider.protocol.messages import (
    ModelInfo,
    Preparation,
    Prepared,
    Proposal,
    SamplingParams,
)
from outrider.v1 import draft_pb2

# A slot that was given back is free after the pass that uses it. Without the draft the
# loop goes on.
_PATIENCE_SECONDS = 0.05


class DraftSession:
    """Proposals for one sequence; `partners.Drafter` over the network."""

    def __init__(
        self,
        open_call: Callable[[], Any],
        params: SamplingParams,
        draft: ModelInfo,
        target: ModelInfo,
        timeline: Timeline | None = None,
    ) -> None:
        self.max_context_length = draft.max_context_length
        self.num_prepared_tokens = 0
        self.given_up_for: OutriderError | None = None
        """Why the loop went on without it, if it did."""
        self._stream = SessionStream(
            open_call,
            draft_pb2.ProposeRequest(
                sampling=sampling_to_wire(params), vocab_size=target.vocab_size
            ),
            _PATIENCE_SECONDS,
            "the draft",
        )
        self._mirror = Mirror()
        self._vocab_size = draft.vocab_size
        self._context_length = 0
        # What the draft has prepared behind that context, by what it assumes.
        self._table: dict[tuple[int, ...], Prepared] = {}
        self._growth: asyncio.Future[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._failure: OutriderError | None = None
        # Who waits for the responses to come; nobody for those that only confirm.
        self._waiting: deque[asyncio.Future[Any] | None] = deque()
        self._timeline = timeline

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, preparation: Preparation
    ) -> Proposal:
        """At most so many tokens that may follow `tokens`; then prepares for their verdict.

        Raises OutriderError.
        """
        request = self._request(tokens, preparation)
        request.num_speculative_tokens = num_speculative_tokens
        self._note_sent("propose" if num_speculative_tokens else "read", request)
        proposal = proposal_from_wire(await self._exchange(request))
        self._mirror.hold(tokens, proposal.draft_token_ids, proposal.sequence_length)
        return proposal

    async def follow(
        self, tokens: Sequence[int], draft: Sequence[int], preparation: Preparation
    ) -> None:
        """Tells that `draft` is being verified behind `tokens`, and prepares for that.

        Raises OutriderError.
        """
        request = self._request(tokens, preparation)
        request.draft_token_ids.extend(map(self._representable, draft))
        if preparation.num_tokens and not preparation.num_branches:
            # Nothing is prepared, which would read these: asked for a token, it does so now.
            request.num_speculative_tokens = 1
        self._waiting.append(None)
        self._note_sent("follow", request)
        await self._send(request)
        self._mirror.hold(tokens, draft, len(tokens) + len(draft))

    def prepared(self, tokens: Sequence[int]) -> Prepared | None:
        """What the draft has prepared so far for the case that `tokens` are committed."""
        prepared = self._table.get(tuple(tokens[self._context_length :]))
        return prepared if prepared is not None and prepared.draft_token_ids else None

    def is_coming(self, tokens: Sequence[int]) -> bool:
        """Whether the draft prepares for that, but had nothing yet when it last said so."""
        prepared = self._table.get(tuple(tokens[self._context_length :]))
        return prepared is not None and not prepared.draft_token_ids

    def likeliest(self, tokens: Sequence[int], draft: Sequence[int]) -> Prepared | None:
        """What has been prepared so far for the case that all of `draft` are accepted."""
        if len(tokens) != self._context_length:
            return None
        # The only ones longer than the draft are those with a guess of the token after it.
        return next(
            (
                prepared
                for assumed, prepared in self._table.items()
                if len(assumed) > len(draft)
                and assumed[: len(draft)] == tuple(draft)
                and prepared.draft_token_ids
            ),
            None,
        )

    def growth(self) -> asyncio.Future[None]:
        """Done when the draft has prepared more."""
        if self._growth is None or self._growth.done():
            self._growth = asyncio.get_running_loop().create_future()
        return self._growth

    def _request(self, tokens: Sequence[int], preparation: Preparation) -> draft_pb2.ProposeRequest:
        self._context_length = len(tokens)
        self._table = {}
        context_length, token_ids = self._mirror.difference(tokens)
        return draft_pb2.ProposeRequest(
            context_length=context_length,
            token_ids=[self._representable(token_id) for token_id in token_ids],
            num_branches=preparation.num_branches,
            num_prepared_tokens=preparation.num_tokens,
            num_branches_is_limit=preparation.is_limit,
            acceptance_rate=preparation.acceptance_rate,
        )

    def _representable(self, token_id: int) -> int:
        """A draft with a smaller embedding reads a stand-in; its proposals are guesses anyway."""
        return token_id if token_id < self._vocab_size else 0

    async def _exchange(self, request: draft_pb2.ProposeRequest) -> draft_pb2.ProposeResponse:
        if self._reader is None:
            response = await self._stream.exchange(request)
            self._note_answered(response)
            self._reader = asyncio.create_task(self._read())
        else:
            answer = asyncio.get_running_loop().create_future()
            self._waiting.append(answer)
            await self._send(request)
            response = await answer
            if response is None and self._failure is not None:
                raise self._failure
        assert isinstance(response, draft_pb2.ProposeResponse)
        return response

    async def _send(self, request: draft_pb2.ProposeRequest) -> None:
        if self._failure is not None:
            raise self._failure
        await self._stream.send(request)

    async def _read(self) -> None:
        """Files what arrives: prepared continuations in the table, responses to who waits."""
        try:
            while True:
                response = await self._stream.receive()
                if response.prepared:
                    grown = prepared_from_wire(response)
                    if self._timeline is not None:
                        self._timeline.prepared(response.timings.total_ns, grown)
                    self._add(grown)
                elif not self._waiting:
                    raise ServiceUnavailable("the draft answers what was not asked")
                else:
                    self._note_answered(response)
                    if (answer := self._waiting.popleft()) is not None and not answer.done():
                        answer.set_result(response)
        except OutriderError as error:
            self._failure = error
            # Not as their exception: who could not even send does not come for the answer.
            for answer in self._waiting:
                if answer is not None and not answer.done():
                    answer.set_result(None)

    def _note_sent(self, name: str, request: draft_pb2.ProposeRequest) -> None:
        if self._timeline is not None:
            self._timeline.sent(DRAFT, name, request.token_ids)

    def _note_answered(self, response: draft_pb2.ProposeResponse) -> None:
        if self._timeline is not None:
            timings = timings_from_wire(response.timings)
            self._timeline.answered(DRAFT, timings, response.draft_token_ids)

    def _add(self, grown: list[Prepared]) -> None:
        for prepared in grown:
            # One that was sent before the draft knew of the last verdict is stale.
            if prepared.context_length != self._context_length:
                continue
            before = self._table.get(prepared.assumed_token_ids)
            num_before = len(before.draft_token_ids) if before else 0
            self.num_prepared_tokens += len(prepared.draft_token_ids) - num_before
            self._table[prepared.assumed_token_ids] = prepared
        if self._growth is not None and not self._growth.done():
            self._growth.set_result(None)

    def close(self, reason: OutriderError | None = None) -> None:
        self.given_up_for = self.given_up_for or reason
        self._stream.close()  # which ends the reader, too
