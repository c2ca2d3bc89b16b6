"""Conversations, and their validation before a chat template renders them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from outrider.errors import InvalidRequest

ROLES = ("system", "developer", "user", "assistant", "tool")

# Variables of a template that the orchestrator sets.
_OWN_VARIABLES = ("messages", "add_generation_prompt")

_LONGEST_NAME = 60  # characters of a name in an error message


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


def check_conversation(
    messages: Sequence[Message], continues_last: bool, template_arguments: Mapping[str, object]
) -> None:
    """Raises InvalidRequest if the conversation is invalid, or if there are no messages but options
    for them."""
    for index, turn in enumerate(messages):
        if not turn.role:
            raise InvalidRequest(f"messages[{index}] has no role")
        if turn.role not in ROLES:
            raise InvalidRequest(
                f"messages[{index}] has the unknown role {turn.role[:_LONGEST_NAME]!r}: "
                f"roles are {', '.join(ROLES)}"
            )
        if not turn.content:
            raise InvalidRequest(f"messages[{index}], of role {turn.role!r}, is empty")
    if continues_last and (not messages or messages[-1].role != "assistant"):
        raise InvalidRequest("continue_final_message needs a last message of role 'assistant'")
    if template_arguments and not messages:
        raise InvalidRequest("chat_template_kwargs goes with messages, not with prompt")
    for name in _OWN_VARIABLES:
        if name in template_arguments:
            raise InvalidRequest(f"chat_template_kwargs must not have {name!r}")
