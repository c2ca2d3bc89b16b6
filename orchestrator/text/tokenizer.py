"""Text to tokens and back, and conversations to prompts, without transformers."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

import tokenizers

from orchestrator.text.conversation import Message
from outrider.errors import InvalidRequest, UnsupportedModel
from outrider.models.chat_template import NO_ARGUMENTS, ChatTemplate
from outrider.protocol.messages import TokenizerFiles


class Tokenizer:
    """A tokenizer and a chat template from a service.

    Raises:
        UnsupportedModel: the installed `tokenizers` cannot read the service's file.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        try:
            self.backend = tokenizers.Tokenizer.from_str(files.tokenizer_json)
        except Exception as error:  # the library has no own class
            raise UnsupportedModel(
                f"tokenizers {tokenizers.__version__} cannot read the tokenizer: {error}"
            ) from error
        # A file may have truncation and padding from training, which prompts must not get.
        self.backend.no_padding()
        self.backend.no_truncation()
        added = self.backend.get_added_tokens_decoder()
        self.special_ids = {token.content: i for i, token in added.items() if token.special}
        """The id of each special token."""
        self._without_text = frozenset(self.special_ids.values())
        self._chat_template = ChatTemplate.of(files)

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    @property
    def vocab(self) -> Mapping[str, int]:
        """The id of each token, including added ones."""
        return self.backend.get_vocab(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, including the special tokens that the tokenizer adds."""
        return self._encode(text, add_special_tokens=True)

    def fewest_tokens(self, text: str) -> int:
        """A lower bound on the number of tokens of `text`, without tokenizing it."""
        if self.backend.normalizer is not None:
            return 0  # a normalizer may shorten the text
        # A token's name has at least as many bytes as its text.
        return len(text.encode()) // self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        return max(len(token.encode()) for token in self.vocab)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        # A batch of one: unlike `encode`, it lets other threads run meanwhile.
        [encoding] = self.backend.encode_batch([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def encode_messages(
        self,
        messages: Sequence[Message],
        continues_last: bool = False,
        template_arguments: Mapping[str, object] = NO_ARGUMENTS,
    ) -> list[int]:
        """The tokens of a conversation, up to where the assistant's next turn begins.

        Args:
            continues_last: the tokens end with the last message instead.
            template_arguments: additional variables for the chat template.

        Raises:
            InvalidRequest: the model has no chat template, or it refuses the conversation.
            BrokenChatTemplate: its template fails for every conversation.
        """
        if self._chat_template is None:
            raise InvalidRequest("the target has no chat template: use prompt instead of messages")
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        if continues_last:
            text = self._chat_template.render_open(turns, template_arguments)
        else:
            text = self._chat_template.render(turns, template_arguments)
        # The template has written the special tokens itself.
        return self._encode(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special tokens omitted."""
        return self.backend.decode(list(token_ids), skip_special_tokens=True)

    def has_text(self, token_id: int) -> bool:
        """Whether the token appears in `decode`, which omits special and unknown ids."""
        return token_id not in self._without_text and self.backend.id_to_token(token_id) is not None

    @cached_property
    def special_token(self) -> re.Pattern[str]:
        """A pattern that matches special tokens in a text, the longest one at each position."""
        longest_first = sorted(filter(None, self.special_ids), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
