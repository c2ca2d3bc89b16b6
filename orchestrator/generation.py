"""One request from text to text: tokenise, decode, detokenise, stop, report."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from orchestrator.decoding.decoder import Step, decode
from orchestrator.decoding.interfaces import Drafter, Verifier
from orchestrator.decoding.speculation import Speculation
from orchestrator.policy.adaptive_length import AdaptiveLength
from orchestrator.policy.draft_length import FixedLength, LengthPolicy
from orchestrator.policy.experience import Experience
from orchestrator.policy.round_trip import Distance
from orchestrator.reporting.latency import CriticalPath
from orchestrator.text.conversation import check_conversation
from orchestrator.text.text_stream import TextStream, check_stop_strings
from orchestrator.text.tokenizer import Tokenizer
from outrider.errors import ContextTooLong, InvalidRequest
from outrider.protocol.messages import GREEDY, MAX_NUM_SPECULATIVE_TOKENS, ModelInfo, SamplingParams

DEFAULT_MAX_NEW_TOKENS = 64
MAX_NUM_PREDRAFTS = 64
MAX_NUM_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256

# From so many characters on, tokenising takes long enough to hold up other requests.
_LONG_TEXT = 8192


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be generated; see GenerateRequest."""

    prompt: str = ""
    messages: tuple[Message, ...] = ()
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    sampling: SamplingParams = GREEDY
    stop_strings: tuple[str, ...] = ()
    num_speculative_tokens: int | None = None
    """None leaves the number to the policy."""
    ignore_eos: bool = False
    num_predrafts: int | None = None
    """None: as many as pay, up to DEFAULT_NUM_PREDRAFTS."""
    prompt_lookup: bool | None = None
    """Whether to look drafts up in the text. None: if the policy chooses their length."""
    continue_final_message: bool = False
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)

    @property
    def looks_up(self) -> bool:
        if self.prompt_lookup is None:
            return self.num_speculative_tokens is None
        return self.prompt_lookup

    @property
    def texts(self) -> list[str]:
        return [self.prompt, *(message.content for message in self.messages)]

    def check(self, max_new_tokens: int | None = None) -> None:
        """Raises InvalidRequest. `max_new_tokens` is what a request may ask for at most."""
        if bool(self.prompt) == bool(self.messages):
            raise InvalidRequest("either prompt or messages must be given, and not be empty")
        check_conversation(self.messages, self.continue_final_message, self.chat_template_kwargs)
        if self.max_new_tokens < 1:
            raise InvalidRequest("max_new_tokens must be at least 1")
        if max_new_tokens is not None and self.max_new_tokens > max_new_tokens:
            raise InvalidRequest(f"max_new_tokens must be at most {max_new_tokens}")
        if len(self.stop_strings) > MAX_NUM_STOP_STRINGS:
            raise InvalidRequest(f"there may be at most {MAX_NUM_STOP_STRINGS} stop strings")
        check_stop_strings(self.stop_strings)
        if any(len(stop) > MAX_STOP_STRING_LENGTH for stop in self.stop_strings):
            raise InvalidRequest(
                f"a stop string may have at most {MAX_STOP_STRING_LENGTH} characters"
            )
        if (self.num_speculative_tokens or 0) > MAX_NUM_SPECULATIVE_TOKENS:
            raise InvalidRequest(
                f"num_speculative_tokens must be at most {MAX_NUM_SPECULATIVE_TOKENS}"
            )
        if (self.num_predrafts or 0) > MAX_NUM_PREDRAFTS:
            raise InvalidRequest(f"num_predrafts must be at most {MAX_NUM_PREDRAFTS}")


def draw_seed() -> int:
    """A seed for a request that brings none."""
    return secrets.randbits(53)  # JSON clients read numbers as doubles: these they get exactly


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became final with a token."""

    text: str
    token_id: int
    from_draft: bool


class Generation:
    """A request under way: iterate `pieces` to its end, then read the result."""

    def __init__(self, request: Request, path: CriticalPath) -> None:
        self.request = request
        self.path = path
        self.token_ids: list[int] = []
        self.text = ""
        self.num_prompt_tokens = 0
        self.num_committed_tokens = 0  # never falls, unlike token_ids at a stop string
        self.stopped = False
        self.ttft_ns = 0
        self.speculation = Speculation()
        self.num_target_threads = 0  # of its last pass, on a CPU
        self.draft_failure = ""  # why the draft did not take part, or not to the end

    @property
    def tpot_ns(self) -> int:
        """Time of a token after the first; 0 below two tokens."""
        num_later_tokens = len(self.token_ids) - 1
        if num_later_tokens < 1:
            return 0
        return (self.path.wall_ns - self.ttft_ns) // num_later_tokens

    async def encode(self, tokenizer: Tokenizer, target: ModelInfo) -> list[int]:
        """The prompt's tokens. Raises InvalidRequest, ContextTooLong."""
        texts = self.request.texts
        # What cannot fit is refused before it is split.
        _check_fits(max(map(tokenizer.fewest_tokens, texts)), target, at_least=True)
        # A template's arguments may be of any size, and be written any number of times.
        if sum(map(len, texts)) < _LONG_TEXT and not self.request.chat_template_kwargs:
            prompt = self._encode(tokenizer)
        else:
            prompt = await asyncio.to_thread(self._encode, tokenizer)
        if not prompt:
            raise InvalidRequest("the prompt has no tokens")
        _check_fits(len(prompt), target)
        self.num_prompt_tokens = len(prompt)
        self.path.spend("tokenize")
        return prompt

    def _encode(self, tokenizer: Tokenizer) -> list[int]:
        request = self.request
        if not request.messages:
            return tokenizer.encode(request.prompt)
        return tokenizer.encode_messages(
            request.messages, request.continue_final_message, request.chat_template_kwargs
        )

    async def pieces(
        self,
        prompt: Sequence[int],
        tokenizer: Tokenizer,
        target: ModelInfo,
        verifier: Verifier,
        drafter: Drafter | None,
        lengths: LengthPolicy,
        distance: Distance,
    ) -> AsyncGenerator[list[Piece], None]:
        """The text's pieces, step by step. Raises OutriderError."""
        request = self.request
        max_length = min(len(prompt) + request.max_new_tokens, target.max_context_length)
        eos = frozenset() if request.ignore_eos else frozenset(target.eos_token_ids)
        text_stream = TextStream(tokenizer, request.stop_strings, prompt)
        steps = decode(
            prompt,
            max_length,
            verifier,
            drafter,
            lengths,
            self.path,
            request.num_predrafts,
            request.looks_up,
            distance,
        )
        async with aclosing(steps):
            async for step in steps:
                self.path.spend("orchestrator")
                self._count(step)
                if drafter is not None:
                    self.speculation.num_predrafted_tokens = drafter.num_predrafted_tokens
                pieces = self._commit(step, text_stream, eos)
                is_last = self.stopped or len(prompt) + len(self.token_ids) >= max_length
                if is_last:
                    pieces[-1] = self._finish(pieces[-1], text_stream)
                self.path.spend("detokenize")
                self.ttft_ns = self.ttft_ns or self.path.wall_ns
                yield pieces
                if is_last:
                    break

    def _count(self, step: Step) -> None:
        self.speculation.count(step)
        if self.path.timeline is not None:
            self.path.timeline.step(
                step.num_draft_tokens, step.num_accepted_tokens, step.drafted.source
            )

    def lengths(self, experience: Experience) -> LengthPolicy:
        if self.request.num_speculative_tokens is None:
            return AdaptiveLength(experience, predrafts=self.request.num_predrafts != 0)
        return FixedLength(self.request.num_speculative_tokens, experience)

    def _finish(self, piece: Piece, text_stream: TextStream) -> Piece:
        """The last piece with the text that was held back; drops tokens behind a stop string."""
        rest = text_stream.flush()
        self.text += rest
        if text_stream.stopped is not None:
            self.stopped = True
            del self.token_ids[text_stream.num_kept_tokens :]
        return dataclasses.replace(piece, text=piece.text + rest)

    def _commit(self, step: Step, text_stream: TextStream, eos: frozenset[int]) -> list[Piece]:
        """Takes a step's tokens until one of them ends the text."""
        pieces = []
        for index, token_id in enumerate(step.token_ids):
            self.token_ids.append(token_id)
            self.num_committed_tokens += 1
            text = "" if token_id in eos else text_stream.push(token_id)
            self.text += text
            pieces.append(Piece(text, token_id, index < step.num_accepted_tokens))
            if token_id in eos or text_stream.stopped is not None:
                self.stopped = True
                break
        return pieces


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
