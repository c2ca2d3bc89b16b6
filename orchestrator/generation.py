"""One request from text to text: tokenize, queue, decode, detokenize, stop, report."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from orchestrator.activity import Activity
from orchestrator.admission import Admission
from orchestrator.decoding.decoder import decode, one_ahead
from orchestrator.decoding.proposer import Proposer
from orchestrator.forecast import Work
from orchestrator.policy.adaptive import AdaptivePolicy
from orchestrator.policy.draft_policy import DraftPolicy, FixedLength
from orchestrator.reporting.latency import CriticalPath
from orchestrator.reporting.speculation import Speculation
from orchestrator.request import Request
from orchestrator.sessions.pair import Pair
from orchestrator.step import DraftSource, StepRecord
from orchestrator.text.text_stream import TextStream
from orchestrator.text.tokenizer import Tokenizer
from outrider.errors import ContextTooLong, InvalidRequest
from outrider.protocol.messages import ModelInfo, PolicyEstimates, TextPiece
from outrider.protocol.stages import Stage

# From so many characters on, tokenising takes long enough to hold up other requests.
_LONG_TEXT = 8192


@dataclass(eq=False)
class Generation:
    """A running request: iterate `run` to its end, then read the result."""

    request: Request
    path: CriticalPath = field(default_factory=CriticalPath)
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    num_prompt_tokens: int = 0
    num_committed_tokens: int = 0
    """Includes tokens that are later removed from `token_ids` because of a stop string."""
    stopped: bool = False
    speculation: Speculation = field(default_factory=Speculation)
    num_target_threads: int = 0
    """CPU threads of the target's last forward pass; 0: unknown."""
    draft_failure: str = ""
    """Why all or part of the text was generated without the draft; empty if it did not fail."""
    estimates: PolicyEstimates | None = None
    """The draft policy's at the end; None if it has decided nothing."""

    async def run(
        self,
        pair: Pair,
        admission: Admission,
        activity: Activity,
        deadline: float | None = None,
    ) -> AsyncGenerator[list[TextPiece], None]:
        """The text's pieces, step by step. Raises OutriderError.

        Args:
            deadline: the caller's, on the clock of `time.monotonic`.
        """
        request, target = self.request, pair.target_info
        admission.check_queue()
        prompt = await self.encode(pair.tokenizer, target)
        max_length = min(len(prompt) + request.max_new_tokens, target.max_context_length)
        may_end = not request.ignore_eos or bool(request.stop_strings)
        work = Work(len(prompt), max_length - len(prompt), may_end)
        text_stream = TextStream(pair.tokenizer, request.stop_strings, prompt)
        eos = frozenset() if request.ignore_eos else frozenset(target.eos_token_ids)
        async with admission.slot(work, _seconds_until(deadline)) as slot:
            self.path.spend(Stage.QUEUE)
            policy = self._policy(pair)
            speculates = request.num_speculative_tokens != 0
            if speculates and pair.draft_outage is not None:
                self.draft_failure = pair.draft_outage.reason
            left = _seconds_until(deadline)
            opened = pair.sessions(
                request.sampling, speculates, left, self.path.timeline, max_length
            )
            with activity.running(self), opened as sessions:
                proposer = Proposer(
                    sessions.drafter,
                    policy,
                    request.num_predrafts,
                    request.looks_up,
                    sessions.reopen_drafter,
                )
                decoding = decode(prompt, max_length, sessions.verifier, proposer, eos)
                try:
                    async with aclosing(one_ahead(decoding)) as steps:
                        async for step in steps:
                            pieces = self._commit(step, text_stream, eos)
                            length = len(prompt) + len(self.token_ids)
                            is_last = self.stopped or length >= max_length
                            if is_last:
                                pieces[-1] = self._finish(pieces[-1], text_stream)
                            self.path.is_stepping = not is_last
                            self.path.spend(Stage.DETOKENIZE)
                            self.path.committed(len(self.token_ids))
                            slot.advance(self.num_committed_tokens, step.seconds)
                            yield pieces
                            if is_last:
                                break
                    if sessions.drafter is not None:
                        self.estimates = policy.estimates()
                finally:
                    if (failure := sessions.draft_failure) is not None:
                        self.draft_failure = failure.message

    def _policy(self, pair: Pair) -> DraftPolicy:
        k = self.request.num_speculative_tokens
        if k is None:
            return AdaptivePolicy(pair.policy_state, predrafts=self.request.num_predrafts != 0)
        return FixedLength(pair.policy_state, k)

    async def encode(self, tokenizer: Tokenizer, target: ModelInfo) -> list[int]:
        """Tokenizes the prompt. Raises InvalidRequest, ContextTooLong."""
        request, texts = self.request, self.request.texts
        # What cannot fit is refused before it is split.
        _check_fits(max(map(tokenizer.fewest_tokens, texts)), target, at_least=True)

        def encode() -> list[int]:
            if not request.messages:
                return tokenizer.encode(request.prompt)
            return tokenizer.encode_messages(
                request.messages, request.continue_final_message, request.chat_template_kwargs
            )

        # A template may write its arguments any number of times.
        if sum(map(len, texts)) < _LONG_TEXT and not request.chat_template_kwargs:
            prompt = encode()
        else:
            prompt = await asyncio.to_thread(encode)
        if not prompt:
            raise InvalidRequest("the prompt has no tokens")
        _check_fits(len(prompt), target)
        self.num_prompt_tokens = len(prompt)
        self.path.spend(Stage.TOKENIZE)
        return prompt

    def _commit(
        self, step: StepRecord, text_stream: TextStream, eos: frozenset[int]
    ) -> list[TextPiece]:
        """Takes a step's tokens until one of them ends the text."""
        self.path.book(step)
        self.speculation.count(step)
        self.num_target_threads = step.num_target_threads
        pieces, origin = [], "lookup" if step.source is DraftSource.LOOKUP else "draft"
        for index, token_id in enumerate(step.token_ids):
            self.token_ids.append(token_id)
            self.num_committed_tokens += 1
            text = "" if token_id in eos else text_stream.push(token_id)
            self.text += text
            source = origin if index < step.num_accepted_tokens else "target"
            pieces.append(TextPiece(text, token_id, source))
            if token_id in eos or text_stream.stopped is not None:
                self.stopped = True
                break
        return pieces

    def _finish(self, piece: TextPiece, text_stream: TextStream) -> TextPiece:
        """The last piece with the text that was held back; drops tokens behind a stop string."""
        rest = text_stream.flush()
        self.text += rest
        if text_stream.stopped is not None:
            self.stopped = True
            del self.token_ids[text_stream.num_kept_tokens :]
        return dataclasses.replace(piece, text=piece.text + rest)


def _seconds_until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.001, deadline - time.monotonic())


def _check_fits(num_prompt_tokens: int, target: ModelInfo, at_least: bool = False) -> None:
    """Raises ContextTooLong if there is no room for a token after the prompt."""
    if num_prompt_tokens >= target.max_context_length:
        has = "has at least" if at_least else "has"
        raise ContextTooLong(
            f"the prompt {has} {num_prompt_tokens} tokens, and the target's context limit is "
            f"{target.max_context_length}, with at least one new token",
            num_prompt_tokens=str(num_prompt_tokens),
            limit=str(target.max_context_length),
        )
