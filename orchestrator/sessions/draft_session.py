"""The draft, as the loop sees it: a session over a gRPC stream.

The loop passes all committed tokens; only the difference to what the service holds is sent.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.reporting.timeline import Timeline
from orchestrator.sessions.hidden_state_window import HiddenStateWindow
from orchestrator.sessions.sequence_sync import SequenceSync
from orchestrator.sessions.stream import SessionStream
from outrider.errors import OutriderError, ServiceUnavailable
from outrider.protocol.codec import (
    hidden_states_to_wire,
    predrafts_from_wire,
    proposal_from_wire,
    sampling_to_wire,
)
from outrider.protocol.hidden_states import HiddenStates
from outrider.protocol.messages import (
    ModelInfo,
    Predraft,
    PredraftPlan,
    Proposal,
    SamplingParams,
)
from outrider.protocol.stages import Track
from outrider.v1 import draft_pb2

# How long to retry while all slots are taken; the loop can continue without the draft.
_SLOT_WAIT_SECONDS = 0.05


class DraftSession:
    """Proposals for one sequence; `interfaces.Drafter` over gRPC.

    If the stream fails between two messages, the speculation cache is emptied, and the next
    `propose` or `follow` raises the error.

    Args:
        window: the target's hidden states, for a feature draft.
        max_length: of the sequence, which the draft reserves; 0: as many tokens as it can.
    """

    def __init__(
        self,
        open_call: Callable[[], Any],
        params: SamplingParams,
        draft: ModelInfo,
        target: ModelInfo,
        timeline: Timeline | None = None,
        window: HiddenStateWindow | None = None,
        max_length: int = 0,
    ) -> None:
        longest = draft.max_context_length
        self.max_context_length = min(max_length or longest, longest)
        self.num_predrafted_tokens = 0
        self.given_up_for: OutriderError | None = None
        """Why the loop abandoned the draft; None if it did not."""
        self._stream = SessionStream(
            open_call,
            draft_pb2.ProposeRequest(
                sampling=sampling_to_wire(params),
                vocab_size=target.vocab_size,
                max_length=max_length,
            ),
            _SLOT_WAIT_SECONDS,
            "the draft",
        )
        self._sync = SequenceSync()
        self._vocab_size = draft.vocab_size
        self._context_length = 0
        # The speculation cache: predrafts after that context, keyed by the tokens that they assume.
        # Every request empties it, so that predrafts for other outcomes are discarded.
        self._cache: dict[tuple[int, ...], Predraft] = {}
        self._growth: asyncio.Future[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._failure: OutriderError | None = None
        # One entry for each response to come: the future to resolve, or None for `follow`.
        self._waiting: deque[asyncio.Future[Any] | None] = deque()
        self._timeline = timeline
        if timeline is not None:
            timeline.opened(Track.DRAFT)
        self._window = window
        self._num_states = 0  # tokens whose hidden states the draft has been sent

    async def until_readable(self, tokens: Sequence[int]) -> None:
        """Returns once the draft can read `tokens`: a feature draft after the target has."""
        if self._window is not None:
            await self._window.until(len(tokens) - 1)

    async def propose(
        self, tokens: Sequence[int], num_speculative_tokens: int, plan: PredraftPlan
    ) -> Proposal:
        """At most `num_speculative_tokens` draft tokens after `tokens`; predrafts follow.

        Raises OutriderError.
        """
        request = self._request(tokens, plan, await self._lacking_states(tokens))
        request.num_speculative_tokens = num_speculative_tokens
        self._note_sent("propose" if num_speculative_tokens else "read", request)
        proposal = await self._exchange(request)
        self._sync.hold(tokens, proposal.draft_token_ids, proposal.sequence_length)
        return proposal

    async def follow(self, tokens: Sequence[int], draft: Sequence[int], plan: PredraftPlan) -> None:
        """Tells the draft that `draft` is being verified after `tokens`; predrafts follow.

        Raises OutriderError.
        """
        request = self._request(tokens, plan, await self._lacking_states(tokens))
        request.draft_token_ids.extend(map(self._representable, draft))
        self._waiting.append(None)
        self._note_sent("follow", request)
        await self._send(request)
        self._sync.hold(tokens, draft, len(tokens) + len(draft))

    def cached(self, tokens: Sequence[int]) -> Predraft | None:
        """The predraft for the case that `tokens` are committed, with the draft tokens received so
        far; None without any."""
        predraft = self._cache.get(tuple(tokens[self._context_length :]))
        return predraft if predraft is not None and predraft.draft_token_ids else None

    def is_under_way(self, tokens: Sequence[int]) -> bool:
        """Whether a predraft for that case has been started but has no draft token yet."""
        predraft = self._cache.get(tuple(tokens[self._context_length :]))
        return predraft is not None and not predraft.draft_token_ids

    def after_full_acceptance(self, tokens: Sequence[int], draft: Sequence[int]) -> Predraft | None:
        """The predraft for the case that all of `draft` is accepted, with the draft tokens received
        so far; None without any."""
        if len(tokens) != self._context_length:
            return None
        # The only ones longer than the draft are those with a guess of the token after it.
        return next(
            (
                predrafted
                for assumed, predrafted in self._cache.items()
                if len(assumed) > len(draft)
                and assumed[: len(draft)] == tuple(draft)
                and predrafted.draft_token_ids
            ),
            None,
        )

    def growth(self) -> asyncio.Future[None]:
        """A future that is done when a predraft has grown, or the stream has failed."""
        if self._growth is None or self._growth.done():
            self._growth = asyncio.get_running_loop().create_future()
        return self._growth

    def _request(
        self, tokens: Sequence[int], plan: PredraftPlan, states: HiddenStates | None
    ) -> draft_pb2.ProposeRequest:
        self._context_length = len(tokens)
        self._cache = {}
        context_length, token_ids = self._sync.difference(tokens)
        request = draft_pb2.ProposeRequest(
            context_length=context_length,
            token_ids=[self._representable(token_id) for token_id in token_ids],
            predraft_length=plan.num_tokens,
            acceptance_rate=plan.acceptance_rate,
            hidden_states=hidden_states_to_wire(states),
        )
        if plan.is_limit:
            request.max_predrafts = plan.num_predrafts
        else:
            request.num_predrafts = plan.num_predrafts
        return request

    async def _lacking_states(self, tokens: Sequence[int]) -> HiddenStates | None:
        """The hidden states that the draft still needs to continue `tokens`; None if it needs none.

        If they exceed one message, sends all but the last part, each with the tokens up to it.
        """
        if self._window is None:
            return None
        *surplus, last = self._window.between(self._num_states, len(tokens) - 1).pieces()
        for piece in surplus:
            known = tokens[: piece.end + 1]
            request = self._request(known, PredraftPlan(), piece)
            self._note_sent("read", request)
            if self._reader is None:
                await self._exchange(request)
            else:
                self._waiting.append(None)
                await self._send(request)
            self._sync.hold(known, (), len(known))
        self._num_states = last.end
        return last if last.num_tokens else None

    def _representable(self, token_id: int) -> int:
        """The id, or 0 if it is not in the draft's vocabulary; proposals are only guesses."""
        return token_id if token_id < self._vocab_size else 0

    async def _exchange(self, request: draft_pb2.ProposeRequest) -> Proposal:
        if self._reader is None:
            response = await self._stream.exchange(request)
            _check(response.HasField("proposal"))
            self._reader = asyncio.create_task(self._read())
            return self._answered(response.proposal)
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        await self._send(request)
        proposal: Proposal | None = await answer
        if proposal is None:
            assert self._failure is not None
            raise self._failure
        return proposal

    async def _send(self, request: draft_pb2.ProposeRequest) -> None:
        if self._failure is not None:
            raise self._failure
        await self._stream.send(request)

    async def _read(self) -> None:
        """Reads responses: predrafts go to the speculation cache, proposals to their futures."""
        try:
            while True:
                response = await self._stream.receive()
                if response.HasField("predrafts"):
                    grown = predrafts_from_wire(response.predrafts)
                    if self._timeline is not None:
                        self._timeline.predrafted(response.predrafts.elapsed_ns, grown)
                    self._add(grown)
                    continue
                _check(response.HasField("proposal") and len(self._waiting) > 0)
                proposal = self._answered(response.proposal)
                if (answer := self._waiting.popleft()) is not None and not answer.done():
                    answer.set_result(proposal)
        except OutriderError as error:
            self._failure = error
            # Not as an exception: if the send fails, too, nobody would retrieve it.
            for answer in self._waiting:
                if answer is not None and not answer.done():
                    answer.set_result(None)
            self._cache = {}
            self._tell_growth()

    def _note_sent(self, name: str, request: draft_pb2.ProposeRequest) -> None:
        if self._timeline is not None:
            self._timeline.sent(Track.DRAFT, name, request.token_ids)

    def _answered(self, message: draft_pb2.Proposal) -> Proposal:
        proposal = proposal_from_wire(message)
        if self._timeline is not None:
            self._timeline.answered(Track.DRAFT, proposal.timings, proposal.draft_token_ids)
        return proposal

    def _add(self, grown: list[Predraft]) -> None:
        for predrafted in grown:
            # It was sent before the draft received the latest request.
            if predrafted.context_length != self._context_length:
                continue
            before = self._cache.get(predrafted.assumed_token_ids)
            num_before = len(before.draft_token_ids) if before else 0
            self.num_predrafted_tokens += len(predrafted.draft_token_ids) - num_before
            self._cache[predrafted.assumed_token_ids] = predrafted
        self._tell_growth()

    def _tell_growth(self) -> None:
        if self._growth is not None and not self._growth.done():
            self._growth.set_result(None)

    def close(self, reason: OutriderError | None = None) -> None:
        self.given_up_for = self.given_up_for or reason
        self._stream.close()  # which ends the reader, too


def _check(agrees: bool) -> None:
    if not agrees:
        raise ServiceUnavailable("the draft answers what was not asked")
