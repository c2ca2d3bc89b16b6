"""Text to tokens and back, and conversations to prompts, without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
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
        added = self.backend.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._special_tokens = files.special_tokens
        self._chat_template = files.chat_template

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    @property
    def vocab(self) -> Mapping[str, int]:
        """Token to id, added tokens included."""
        vocab: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return vocab

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with the special tokens that the tokenizer adds."""
        return self._encode(text, add_special_tokens=True)

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that `text` has at least, without splitting it."""
        if self.backend.normalizer is not None:
            return 0  # which may make it any shorter
        # A token's name has at least as many bytes as the text that it stands for.
        return len(text.encode()) // self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        return max(len(token.encode()) for token in self.vocab)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # A batch of one: unlike `encode` it lets other threads run meanwhile.
        [encoding] = self.backend.encode_batch([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def encode_messages(self, messages: Sequence[Turn]) -> list[int]:
        """The tokens of a conversation, up to where the assistant's turn begins.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses the conversation.
        """
        if not self.has_chat_template:
            raise InvalidRequest("the target has no chat template: use prompt instead of messages")
        try:
            text = self._template.render(
                messages=[{"role": turn.role, "content": turn.content} for turn in messages],
                # Some templates compare these with none instead of asking whether they are defined.
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except Exception as error:
            # A template is a program that came with the model: it may fail in any way.
            raise InvalidRequest(f"the chat template refuses the messages: {error}") from error
        # The template has written the special tokens itself.
        return self._encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=True)
        return text

    def has_text(self, token_id: int) -> bool:
        """Whether `decode` looks at the token: special and unknown ids are left out."""
        return token_id not in self._special_ids and self.backend.id_to_token(token_id) is not None

    @cached_property
    def _template(self) -> jinja2.Template:
        # Compiled when first needed: a template that is broken takes away messages, not prompts.
        return _environment().from_string(self._chat_template or "")


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


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it escapes no HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
