"""A session's tokens, on the server side."""

from collections.abc import Sequence

from outrider.errors import ContextMismatch, ContextTooLong, InvalidRequest, InvalidToken


class TokenSequence:
    """Follows the client's sequence by one rule: keep a prefix, append the rest."""

    def __init__(self, vocab_size: int | None, max_length: int) -> None:
        self.token_ids: list[int] = []
        self._vocab_size = vocab_size
        self._max_length = max_length

    def update(self, context_length: int, token_ids: Sequence[int], room: int) -> None:
        """Keeps the first `context_length` tokens and appends `token_ids`.

        Changes nothing if it raises.

        Args:
            room: how many tokens must fit into the context after the sequence.

        Raises:
            ContextMismatch: the sequence is shorter than `context_length`.
            InvalidRequest: the result would be empty.
            InvalidToken: a token id is outside the vocabulary.
            ContextTooLong: the result plus `room` exceeds the context length.
        """
        if context_length > len(self.token_ids):
            raise ContextMismatch(
                "context_length exceeds the tokens that the session holds",
                context_length=str(context_length),
                held=str(len(self.token_ids)),
            )
        length = context_length + len(token_ids)
        if length == 0:
            raise InvalidRequest("there are no tokens to continue")
        self.check_tokens(token_ids)
        if length + room > self._max_length:
            raise ContextTooLong(
                f"the sequence has {length + room} tokens, and the context limit is "
                f"{self._max_length}",
                length=str(length + room),
                limit=str(self._max_length),
            )
        self.token_ids[context_length:] = token_ids

    def check_tokens(self, token_ids: Sequence[int]) -> None:
        """Raises InvalidToken if an id is outside the vocabulary."""
        highest = max(token_ids, default=0)
        if self._vocab_size is not None and highest >= self._vocab_size:
            raise InvalidToken(
                f"token {highest} is outside the model's vocabulary of {self._vocab_size}",
                token_id=str(highest),
                vocab_size=str(self._vocab_size),
            )


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common prefix."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])
