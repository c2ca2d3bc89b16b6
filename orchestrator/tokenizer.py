"""Text to tokens and back, and conversations to prompts, without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import jinja2
import tokenizers
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from outrider.errors import InvalidRequest
from outrider.messages import TokenizerFiles


class Turn(Protocol):
    """One turn of a conversation."""

    @property
    def role(self) -> str: ...

    @property
    def content(self) -> str: ...


class Tokenizer:
    """A tokenizer and a chat template, as a target service sent them."""

    def __init__(self, files: TokenizerFiles) -> None:
        self.backend = tokenizers.Tokenizer.from_str(files.tokenizer_json)
        # What a file may carry along from training is not for prompts.
        self.backend.no_padding()
        self.backend.no_truncation()
        self._special_tokens = files.special_tokens
        self._template = None
        if files.chat_template is not None:
            self._template = _environment().from_string(files.chat_template)

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def vocab(self) -> Mapping[str, int]:
        """Token to id, added tokens included."""
        vocab: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return vocab

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with the special tokens that the tokenizer adds."""
        ids: list[int] = self.backend.encode(text).ids
        return ids

    def encode_messages(self, messages: Sequence[Turn]) -> list[int]:
        """The tokens of a conversation, up to where the assistant's turn begins.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses the conversation.
        """
        if self._template is None:
            raise InvalidRequest("the target has no chat template: use prompt instead of messages")
        try:
            text = self._template.render(
                messages=[{"role": turn.role, "content": turn.content} for turn in messages],
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(f"the chat template refuses the messages: {error}") from error
        # The template has written the special tokens itself.
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=True)
        return text


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks training data; here it marks nothing."""

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


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
