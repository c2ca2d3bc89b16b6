"""Requests that are refused, and what of conversations reaches the template."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct

from orchestrator.codec import request_from_wire
from orchestrator.generation import Generation
from orchestrator.request import Request
from orchestrator.text.conversation import Message
from outrider.client.request import request_to_wire
from outrider.errors import InvalidRequest
from outrider.protocol.messages import ModelInfo
from outrider.v1.generation_pb2 import GenerateRequest

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "Sure"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "either prompt or messages"),
        ({"prompt": "hi", "messages": [USER]}, "either prompt or messages"),
        ({"prompt": "hi", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": "hi", "temperature": -1}, "temperature"),
        ({"prompt": "hi", "temperature": float("nan")}, "temperature"),
        ({"prompt": "hi", "top_p": 1.5}, "top_p"),
        ({"prompt": "hi", "min_p": 2}, "min_p"),
        ({"prompt": "hi", "stop_strings": [""]}, "stop"),
        ({"prompt": "hi", "num_speculative_tokens": 1000}, "num_speculative_tokens"),
        ({"messages": [{"role": "usr", "content": "hi"}]}, r"messages\[0\] .* role 'usr'"),
        ({"messages": [{"content": "hi"}]}, r"messages\[0\] has no role"),
        ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\], of role 'assistant'"),
        ({"messages": [USER], "continue_final_message": True}, "of role 'assistant'"),
        ({"prompt": "hi", "continue_final_message": True}, "of role 'assistant'"),
        ({"prompt": "hi", "chat_template_kwargs": {"a": 1}}, "not with prompt"),
        ({"messages": [USER], "chat_template_kwargs": {"messages": []}}, "'messages'"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        request_from_wire(GenerateRequest(**fields)).check()


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_known_roles_are_taken(role: str) -> None:
    request_from_wire(GenerateRequest(messages=[{"role": role, "content": "hi"}])).check()


def test_arguments_are_plain_values_on_the_other_side() -> None:
    """A number of a Struct is floating; templates write whole ones as such."""
    arguments = {"enable_thinking": False, "n": 3, "x": 0.5, "tools": [{"name": "f", "of": None}]}
    request = request_to_wire(
        [USER, ASSISTANT], {"chat_template_kwargs": arguments, "continue_final_message": True}
    )
    received = request_from_wire(GenerateRequest.FromString(request.SerializeToString()))
    received.check()
    assert received.continue_final_message
    assert received.chat_template_kwargs == arguments
    assert isinstance(received.chat_template_kwargs["n"], int)


def test_numbers_that_are_none_are_no_internal_error() -> None:
    request = GenerateRequest(messages=[USER], chat_template_kwargs=Struct())
    request.chat_template_kwargs["x"] = float("inf")
    request_from_wire(request).check()


@pytest.mark.parametrize("value", [3, ["a"], {"a": object()}])
def test_a_client_names_the_field_of_a_wrong_value(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="chat_template_kwargs cannot be"):
        request_to_wire([USER], {"chat_template_kwargs": value})


@pytest.mark.parametrize(
    ("request_", "on_loop"),
    [
        (Request(messages=(Message("user", "hi"),)), True),
        (Request(messages=(Message("user", "hi " * 8192),)), False),
        (Request(messages=(Message("user", "hi"),), chat_template_kwargs={"tools": []}), False),
    ],
)
async def test_what_may_take_long_holds_up_no_other_request(
    request_: Request, on_loop: bool
) -> None:
    class Tokenizer:
        def fewest_tokens(self, text: str) -> int:
            return 0

        def encode_messages(self, *arguments: Any) -> list[int]:
            assert (threading.current_thread() is threading.main_thread()) == on_loop
            return [1]

    tokenizer: Any = Tokenizer()
    target = ModelInfo("a-target", max_context_length=9, vocab_size=5)
    assert await Generation(request_).encode(tokenizer, target) == [1]
