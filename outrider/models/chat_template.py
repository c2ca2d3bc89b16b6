"""A model's chat template: conversations to prompts, without transformers."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import jinja2
import jinja2.meta
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from outrider.errors import BrokenChatTemplate, InvalidRequest
from outrider.protocol.messages import TokenizerFiles

Turns = Sequence[Mapping[str, Any]]

NO_ARGUMENTS: Mapping[str, object] = MappingProxyType({})

_MARK = "Xyzzy42"  # does not occur in templates
_USER, _ASSISTANT = {"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}
# Conversations of which every template should accept one.
_TRIALS: tuple[Turns, ...] = (
    (_USER,),
    ({"role": "system", "content": _MARK}, _USER),
    (_USER, _ASSISTANT, _USER),
)


class ChatTemplate:
    """A template, compiled and tried when it is created.

    `fault` says why it cannot be used, or is None.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = special_tokens
        self.fault: str | None = None
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self._variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except Exception as error:
            self.fault = _described(error)
        else:
            self.fault = self._find_fault()

    @classmethod
    def of(cls, files: TokenizerFiles) -> "ChatTemplate | None":
        """The template of a tokenizer, if it has one."""
        if files.chat_template is None:
            return None
        return cls(files.chat_template, files.special_tokens)

    def render_open(self, messages: Turns, arguments: Mapping[str, object] = NO_ARGUMENTS) -> str:
        """The prompt of a conversation up to the end of its last message.

        Trailing space is left out if the template leaves it out, as in transformers. Raises
        what `render` does.
        """
        *others, last = messages
        marked = {**last, "content": last["content"] + _MARK + " "}
        text = self.render([*others, marked], arguments, add_generation_prompt=False)
        before, mark, after = text.rpartition(_MARK)
        if not mark or last["content"].strip() not in before:
            raise InvalidRequest("the chat template leaves out the last message, or changes it")
        return before if after.startswith(" ") else before.rstrip()

    def render(
        self,
        messages: Turns,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt of a conversation up to where the assistant's next turn begins.

        Args:
            arguments: further variables of the template.
            add_generation_prompt: whether that turn is opened.

        Raises:
            BrokenChatTemplate: the template works for no conversation.
            InvalidRequest: it refuses this one, or does not know an argument.
        """
        if self.fault is not None:
            raise BrokenChatTemplate(f"the model's chat template is broken: {self.fault}")
        if unknown := sorted(arguments.keys() - self._variables):
            raise InvalidRequest(f"the chat template has no variable {unknown[0]!r}")
        try:
            return self._render(messages, arguments, add_generation_prompt)
        except Exception as error:
            # A template is a program that comes with the model: it may fail in any way.
            raise InvalidRequest(f"the chat template refuses the messages: {error}") from error

    def end_of_turn(self) -> str:
        """What the template writes behind an assistant's last turn; "" if unknown."""
        if self.fault is not None:
            return ""
        try:
            text = self._render((_USER, _ASSISTANT), add_generation_prompt=False)
        except Exception:
            return ""
        return text.rpartition(_MARK)[2]

    def _render(
        self,
        messages: Turns,
        arguments: Mapping[str, object] = NO_ARGUMENTS,
        add_generation_prompt: bool = True,
    ) -> str:
        return self._template.render(
            {
                # Some templates compare these with none instead of asking whether they are defined.
                "tools": None,
                "documents": None,
                **self._special_tokens,
                **arguments,
                "messages": messages,
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def _find_fault(self) -> str | None:
        faults = []
        for messages in _TRIALS:
            try:
                text = self._render(messages)
            except _Refusal:
                return None  # it works, but wants something else
            except Exception as error:
                faults.append(_described(error))
            else:
                if _MARK in text:
                    return None
                faults.append("it leaves out what messages say")
        return faults[0]


class _Refusal(jinja2.TemplateError):
    """The exception of a template's `raise_exception`."""


def _described(error: Exception) -> str:
    line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{type(error).__name__}: {error}{line}"


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks training data and is ignored here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node | list[Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as Hugging Face's chat templates expect it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The tojson filter; unlike Jinja's it does not escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise _Refusal(message)
