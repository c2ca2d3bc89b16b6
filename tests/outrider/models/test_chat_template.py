"""Chat templates: what is broken is found when they are made."""

from __future__ import annotations

import pytest

from outrider.errors import BrokenChatTemplate, InvalidRequest
from outrider.models.chat_template import ChatTemplate
from tests.support.models.tiny_tokenizers import CHAT_TEMPLATE

USER = {"role": "user", "content": "hi"}
SECOND = "{{ messages[1]['content'] }}"  # of a template that wants a system message first
REFUSES = "{{ raise_exception('no user, please') }}"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{% nope %}", "TemplateSyntaxError: Encountered unknown tag 'nope'., line 1"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("hello", "it leaves out what messages say"),
    ],
)
def test_a_fault_is_found_without_a_request(source: str, fault: str) -> None:
    template = ChatTemplate(source, {})
    assert template.fault is not None
    assert template.fault.startswith(fault)
    with pytest.raises(BrokenChatTemplate) as raised:
        template.render([USER])
    assert template.fault in raised.value.message
    assert template.end_of_turn() == ""


@pytest.mark.parametrize("source", [SECOND, REFUSES])
def test_a_template_that_refuses_is_not_broken(source: str) -> None:
    template = ChatTemplate(source, {})
    assert template.fault is None
    with pytest.raises(InvalidRequest, match="refuses"):
        template.render([USER])


def test_arguments_reach_the_template() -> None:
    template = ChatTemplate("{{ messages[0].content }}{{ enable_thinking }}", {})
    assert template.render([USER], {"enable_thinking": False}) == "hiFalse"


@pytest.mark.parametrize(
    ("source", "end"),
    [
        (CHAT_TEMPLATE, "<|im_end|>\n"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "</s>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "\n"),
        (REFUSES, ""),
    ],
)
def test_the_end_of_a_turn(source: str, end: str) -> None:
    assert ChatTemplate(source, {"eos_token": "</s>"}).end_of_turn() == end


def test_an_argument_may_have_any_name() -> None:
    with pytest.raises(InvalidRequest, match="no variable 'self'"):
        ChatTemplate("{{ messages[0].content }}", {}).render([USER], {"self": 1})
    template = ChatTemplate("{{ messages[0].content }}{{ arguments }}", {})
    assert template.render([USER], {"arguments": 1}) == "hi1"
    assert template.render_open([USER], {"arguments": 1}) == "hi"


def test_an_argument_that_the_template_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="'enable_thinkng'"):
        ChatTemplate("{{ messages[0].content }}{{ enable_thinking }}", {}).render(
            [USER], {"enable_thinkng": False}
        )


TRIMS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "content", "end"),
    [
        (CHAT_TEMPLATE, "Sure: ", "<|im_start|>assistant\nSure: "),
        (TRIMS, "Sure: ", "<assistant>Sure:"),
        (TRIMS, "a </s> b", "<assistant>a </s> b"),
    ],
)
def test_a_final_message_is_left_open(source: str, content: str, end: str) -> None:
    template = ChatTemplate(source, {})
    assert template.render_open([USER, {"role": "assistant", "content": content}]).endswith(end)


def test_a_final_message_that_the_template_leaves_out_cannot_be_continued() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    with pytest.raises(InvalidRequest, match="leaves out the last message"):
        template.render_open([USER, {"role": "assistant", "content": "Sure"}])
