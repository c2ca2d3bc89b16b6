"""Conversion of Python arguments to a protobuf request, validated field by field."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.struct_pb2 import Struct

from outrider.errors import InvalidRequest
from outrider.v1 import generation_pb2 as pb

Prompt = str | Sequence[Mapping[str, str]]
"""A text to continue, or a conversation: `[{"role": "user", "content": "..."}]`."""


class Parameters(TypedDict, total=False):
    """Fields of GenerateRequest besides the prompt; `Client.generate` documents them."""

    max_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    stop_strings: str | Sequence[str] | None
    num_speculative_tokens: int | None
    ignore_eos: bool | None
    num_predrafts: int | None
    prompt_lookup: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    trace: bool | None


_VALUES = {
    FieldDescriptor.TYPE_STRING: "text that UTF-8 can encode",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_BOOL: "True or False",
    FieldDescriptor.TYPE_UINT32: "an integer from 0 to 2**32 - 1",
    FieldDescriptor.TYPE_MESSAGE: "a mapping, with names, of values that JSON has",
    FieldDescriptor.TYPE_UINT64: "an integer from 0 to 2**64 - 1",
}

_LONGEST_VALUE = 60  # of a value in an error message, in characters


def request_to_wire(prompt: Prompt, parameters: Parameters) -> pb.GenerateRequest:
    """Converts arguments to a request.

    Raises InvalidRequest if a value does not fit its field, TypeError for unknown parameters.
    """
    if unknown := sorted(parameters.keys() - Parameters.__annotations__):
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    request = pb.GenerateRequest()
    if isinstance(prompt, str):
        _set(request, "prompt", prompt)
    else:
        request.messages.extend(_messages(prompt))
    for name, value in parameters.items():
        if name == "stop_strings" and isinstance(value, str):
            _set(request, name, [value])
        elif value is not None:
            _set(request, name, value)
    return request


def _messages(prompt: Any) -> list[pb.ChatMessage]:
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise InvalidRequest("a prompt is a string, or a list of messages with role and content")
    return [_message(f"messages[{index}]", turn) for index, turn in enumerate(prompt)]


def _message(where: str, turn: Any) -> pb.ChatMessage:
    if not isinstance(turn, Mapping):
        raise InvalidRequest(f"{where} is not a mapping with role and content")
    known = set(pb.ChatMessage.DESCRIPTOR.fields_by_name)
    if missing := sorted({"role", "content"} - turn.keys()):
        raise InvalidRequest(f"{where} has no {missing[0]!r}")
    if unknown := sorted(map(str, turn.keys() - known)):
        raise InvalidRequest(f"{where} has an unknown field {unknown[0]!r:.{_LONGEST_VALUE}}")
    message = pb.ChatMessage()
    for name, value in turn.items():
        _set(message, name, value, f"{where}.{name}")
    return message


def _set(message: Any, name: str, value: Any, where: str = "") -> None:
    """Sets a field; errors name it, which protobuf's do not."""
    field = message.DESCRIPTOR.fields_by_name[name]
    try:
        if isinstance(getattr(message, name), Struct):
            getattr(message, name).update(value)
        elif field.is_repeated:
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (AttributeError, TypeError, ValueError) as error:
        several = "a list of " if field.is_repeated else ""
        raise InvalidRequest(
            f"{where or name} cannot be {repr(value)[:_LONGEST_VALUE]}: "
            f"it must be {several}{_VALUES[field.type]}"
        ) from error
