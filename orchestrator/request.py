"""A client's request, and its validation."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.text.conversation import Message, check_conversation
from orchestrator.text.text_stream import check_stop_strings
from outrider.errors import InvalidRequest
from outrider.protocol.messages import (
    GREEDY,
    MAX_NUM_PREDRAFTS,
    MAX_NUM_SPECULATIVE_TOKENS,
    SamplingParams,
)

DEFAULT_MAX_NEW_TOKENS = 64
MAX_NUM_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Request:
    """What to generate, and how; see GenerateRequest in the protocol."""

    prompt: str = ""
    messages: tuple[Message, ...] = ()
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    sampling: SamplingParams = GREEDY
    stop_strings: tuple[str, ...] = ()
    num_speculative_tokens: int | None = None
    """None: the draft policy decides."""
    ignore_eos: bool = False
    num_predrafts: int | None = None
    """None: as many as pay, up to DEFAULT_NUM_PREDRAFTS."""
    prompt_lookup: bool | None = None
    """Whether to use prompt lookup. None: if `num_speculative_tokens` is None."""
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
        """Raises InvalidRequest. `max_new_tokens` is the most that a request may ask for."""
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
    """A random seed, for a request that sets none."""
    return secrets.randbits(53)  # JSON clients read numbers as doubles: these they get exactly
