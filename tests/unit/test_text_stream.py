from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from orchestrator.text_stream import TextStream
from orchestrator.tokenizer import Tokenizer
from outrider.errors import InvalidRequest
from outrider.messages import TokenizerFiles
from outrider.tokenizer_files import read_tokenizer
from tests.tiny_models import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return Tokenizer(read_tokenizer(str(folder)))


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """Words with a leading "▁", as in Llama 2 and Mistral."""
    words = ["<unk>", "▁", "▁the", "▁cat", "▁sat", "s", "t", "▁on"]
    backend = Backend(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return Tokenizer(TokenizerFiles(backend.to_str(), None, {}))


def stream(tokenizer: Tokenizer, ids: list[int], *stop: str) -> tuple[list[str], TextStream]:
    text_stream = TextStream(tokenizer, stop)
    pieces = []
    for token_id in ids:
        pieces.append(text_stream.push(token_id))
        if text_stream.stopped is not None:
            break
    return [*pieces, text_stream.flush()], text_stream


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    pieces, _ = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any(piece.endswith("\ufffd") for piece in pieces if "\ufffd" not in text)


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(3, 250), max_size=40))
def test_random_tokens_join_to_what_decoding_them_gives(
    tokenizer: Tokenizer, ids: list[int]
) -> None:
    """Mostly invalid UTF-8, which must come out as replacement characters all the same."""
    pieces, _ = stream(tokenizer, ids)
    assert "".join(pieces).replace("\ufffd", "") == tokenizer.decode(ids).replace("\ufffd", "")


@settings(max_examples=150, deadline=None)
@given(text=st.text("abc", max_size=30), stop=st.text("abc", min_size=1, max_size=4))
def test_text_ends_before_the_first_stop_string(tokenizer: Tokenizer, text: str, stop: str) -> None:
    pieces, text_stream = stream(tokenizer, tokenizer.encode(text), stop)
    assert "".join(pieces) == text.split(stop)[0]
    assert (text_stream.stopped == stop) == (stop in text)


def test_a_character_comes_with_its_last_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦊")
    assert len(ids) == 4
    assert stream(tokenizer, ids)[0] == ["", "", "", "🦊", ""]


def test_an_unfinished_character_comes_out_at_the_end(tokenizer: Tokenizer) -> None:
    pieces, _ = stream(tokenizer, tokenizer.encode("a🦊")[:-1])
    assert pieces[0] == "a"
    assert set("".join(pieces[1:])) == {"\ufffd"}


def test_a_possible_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    text_stream = TextStream(tokenizer, ["xyz"])
    released = [text_stream.push(token_id) for token_id in tokenizer.encode("axyyxy")]
    assert "".join(released) == "axyy"
    assert text_stream.flush() == "xy"


def test_tokens_behind_a_stop_string_are_not_kept(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("q1w2e3")
    assert len(ids) == 6
    _, text_stream = stream(tokenizer, ids, "2e")
    assert text_stream.num_kept_tokens == 3
    _, text_stream = stream(tokenizer, ids, "q1")
    assert text_stream.num_kept_tokens == 0
    _, text_stream = stream(tokenizer, ids, "absent")
    assert text_stream.num_kept_tokens == 6


def test_an_empty_stop_string_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="stop"):
        TextStream(tokenizer, ["a", ""])


def test_spaces_between_words_survive(sentencepiece: Tokenizer) -> None:
    ids = [2, 3, 5, 4, 7, 2, 3]
    pieces, _ = stream(sentencepiece, ids)
    assert "".join(pieces) == sentencepiece.decode(ids) == "the cats sat on the cat"
