"""The target writes its own training texts.

An instruct model that is given its chat template up to the user's turn writes a
question; given the question, it answers (Magpie, arXiv 2406.08464). Questions may
also come from a file.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from outrider.distill.shared.texts import Texts, read_text
from outrider.engine.engine import Engine
from outrider.engine.scheduling.job import Job
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.errors import ConfigurationError
from outrider.protocol.messages import SamplingParams
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice, choose_tokens

SHARD_SIZE = 64
QUESTION_TOKENS = 96

# Steps of all texts before Python looks at them; those behind the end of a text are wasted.
_STEPS_AT_ONCE = 8

_MARK = "\x00question\x00"


class Continuation(Job):
    """Continues a text until its end, or by `num_tokens` tokens."""

    def __init__(
        self,
        engine: Engine,
        slot: int,
        prompt: Sequence[int],
        num_tokens: int,
        params: SamplingParams,
    ) -> None:
        super().__init__(slot, 0, prompt, num_logits=1)
        self.written: list[int] = []
        self._engine = engine
        self._first_index = len(prompt)
        self._num_tokens = num_tokens
        self._params = params
        self.spec = SamplingSpec(params, len(engine.logit_token_ids))

    @property
    def num_at_once(self) -> int:
        return min(_STEPS_AT_ONCE, self._num_tokens - len(self.written))

    def advance(self, logits: Tensor) -> list[int]:
        index = self._first_index + len(self.written)
        [token_id] = choose_tokens(logits, self._engine.logit_token_ids, self._params, index)
        return self._write(token_id)

    def take(self, choices: Sequence[Choice]) -> list[int]:
        return self._write(choices[0].token_id)

    def _write(self, token_id: int) -> list[int]:
        self.written.append(token_id)
        is_over = len(self.written) == self._num_tokens
        return [] if is_over or token_id in self._engine.eos_token_ids else [token_id]


class Writer:
    """Writes texts on one engine, many at a time.

    Args:
        max_length: of a text, in tokens.
        temperatures: of answers, which cycle through them.

    Raises:
        ConfigurationError: `max_length` leaves no room for the chat template.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        tokenizer: Any,
        max_length: int,
        temperatures: Sequence[float],
    ) -> None:
        self._engine = engine
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._temperatures = temperatures
        self._prefix, self._suffix = chat_frame(tokenizer)
        if (frame := len(self._prefix) + len(self._suffix)) >= self._longest_prompt:
            raise ConfigurationError(
                f"the chat template takes {frame} tokens, and a prompt may have "
                f"{self._longest_prompt}: make --max-length larger"
            )

    @property
    def _longest_prompt(self) -> int:
        return self._max_length // 2

    def shard(self, number: int, questions: Sequence[str] | None) -> Texts:
        """Shard `number` of the texts, the same at every call.

        Args:
            questions: to be answered; None: the target writes them.
        """
        prompts = self._prompts(number, questions)
        seeds = random.Random(2 * number + 1)
        params = [
            SamplingParams(
                temperature,
                top_p=0.95,
                seed=seeds.getrandbits(63),
            )
            for temperature in itertools.islice(itertools.cycle(self._temperatures), len(prompts))
        ]
        answers = self._write(prompts, self._max_length, params)
        sequences = [
            (prompt + answer)[: self._max_length]
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return Texts.of(sequences, [len(prompt) for prompt in prompts])

    def _prompts(self, number: int, questions: Sequence[str] | None) -> list[list[int]]:
        if questions is not None:
            bodies = [self._tokenizer(one, add_special_tokens=False).input_ids for one in questions]
        else:
            seeds = random.Random(2 * number)
            params = [
                SamplingParams(1.0, top_p=0.95, seed=seeds.getrandbits(63))
                for _ in range(SHARD_SIZE)
            ]
            written = self._write([self._prefix] * SHARD_SIZE, QUESTION_TOKENS, params)
            eos = self._engine.eos_token_ids
            bodies = [body for body in written if body[-1] in eos and len(body) > 1]
            bodies = [body[:-1] for body in bodies]
        prompts = [self._prefix + body + self._suffix for body in bodies]
        return [prompt for prompt in prompts if len(prompt) <= self._longest_prompt]

    def _write(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, params: Sequence[SamplingParams]
    ) -> list[list[int]]:
        """Continues prompts, as many at once as there are slots."""
        written: list[list[int]] = []
        width = self._engine.cache.num_slots
        for begin in range(0, len(prompts), width):
            jobs = list(self._start(prompts[begin : begin + width], num_tokens, params[begin:]))
            for job in jobs:
                job.done.result()
                self._scheduler.release(job.slot)
                written.append(job.written)
        return written

    def _start(
        self, prompts: Sequence[Sequence[int]], num_tokens: int, params: Sequence[SamplingParams]
    ) -> Iterator[Continuation]:
        for prompt, one in zip(prompts, params, strict=False):
            room = min(num_tokens, self._max_length - len(prompt))
            # Slots of earlier texts are free only when their last pass has ended.
            slot = self._scheduler.request_slot(max_waiting=1).result()
            job = Continuation(self._engine, slot, prompt, room, one)
            self._scheduler.submit(job)
            yield job


def chat_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens before and after a user's text, up to the assistant's answer.

    Raises:
        ConfigurationError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ConfigurationError(
            "the target has no chat template, so it can neither write questions nor answer them: "
            "give --text or --data, --num-texts 0, and no --prompts"
        )
    frame = tokenizer.apply_chat_template(
        [{"role": "user", "content": _MARK}], add_generation_prompt=True, tokenize=False
    )
    before, _, after = frame.partition(_MARK)
    encoded = [tokenizer(part, add_special_tokens=False).input_ids for part in (before, after)]
    return encoded[0], encoded[1]


def texts_of_file(path: Path, tokenizer: Any, max_length: int) -> Texts:
    """A text file, cut into sequences of `max_length` tokens."""
    ids = tokenizer(read_text(path)).input_ids
    sequences = [ids[begin : begin + max_length] for begin in range(0, len(ids), max_length)]
    return Texts.of([s for s in sequences if len(s) > 1], [0 for s in sequences if len(s) > 1])
