from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.text.text_stream import TextStream
from orchestrator.text.tokenizer import Tokenizer
from outrider.errors import InvalidRequest
from outrider.models.tokenizer_files import read_tokenizer
from outrider.protocol.messages import TokenizerFiles
from tests.support.models.tiny_tokenizers import WORDS, make_tokenizer, sentencepiece


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return Tokenizer(read_tokenizer(str(folder)))


METASPACE, BYTE_FALLBACK = (
    Tokenizer(TokenizerFiles(sentencepiece(prepends).to_str(), None, {}))
    for prepends in (False, True)
)


def stream(
    tokenizer: Tokenizer, ids: Sequence[int], *stop: str, prompt: Sequence[int] = ()
) -> tuple[list[str], TextStream]:
    text_stream = TextStream(tokenizer, stop, prompt)
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


BYTES = st.one_of(st.integers(0, 270), st.sampled_from([162, 172, 224, 240, 253]))


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(BYTES, max_size=60))
def test_any_tokens_join_to_what_decoding_them_gives(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Special tokens, and mostly bytes that are no characters: U+FFFD as often as there."""
    assert "".join(stream(tokenizer, ids)[0]) == tokenizer.decode(ids)


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from(WORDS[1:]), st.text(max_size=3)), max_size=12))
def test_sentencepiece_joins_to_what_decoding_gives(parts: list[str]) -> None:
    """Whole words, and characters byte by byte."""
    ids = []
    for part in parts:
        of_bytes = [len(WORDS) + byte for byte in part.encode()]
        ids += [WORDS.index(part)] if part in WORDS else of_bytes
    assert "".join(stream(BYTE_FALLBACK, ids)[0]) == BYTE_FALLBACK.decode(ids)
    words = [i for i in ids if i < len(WORDS)]
    assert "".join(stream(METASPACE, words)[0]) == METASPACE.decode(words)


PARTS = st.lists(
    st.one_of(st.sampled_from([*WORDS[1:], "▁▁", "the", " ", "🦊", "\ufffd"]), st.text(max_size=3)),
    max_size=8,
)


def pieces_of(part: str, byte_offset: int) -> list[int]:
    """A word's token, or a token for each byte."""
    if part in WORDS:
        return [WORDS.index(part)]
    return [byte_offset + byte for byte in part.encode()]


@settings(max_examples=100, deadline=None)
@given(prompt=PARTS, new=PARTS)
def test_prompt_and_text_join_to_what_decoding_both_gives(
    prompt: list[str], new: list[str]
) -> None:
    """Spaces between them, and characters that come in bytes on either side."""
    before = [token_id for part in prompt for token_id in pieces_of(part, len(WORDS))]
    after = [token_id for part in new for token_id in pieces_of(part, len(WORDS))]
    pieces, _ = stream(BYTE_FALLBACK, after, prompt=before)
    assert BYTE_FALLBACK.decode(before) + "".join(pieces) == BYTE_FALLBACK.decode(before + after)


@pytest.mark.parametrize("spaces", [METASPACE, BYTE_FALLBACK])
def test_the_space_between_prompt_and_text_is_kept(spaces: Tokenizer) -> None:
    prompt = spaces.encode("the cat")
    sat = [WORDS.index("▁sat")]
    assert spaces.decode(sat) == "sat"
    assert stream(spaces, sat, prompt=prompt)[0] == [" sat", ""]
    assert stream(spaces, sat)[0] == ["sat", ""]


def test_a_prompt_of_special_tokens_is_no_text(tokenizer: Tokenizer) -> None:
    assert stream(tokenizer, tokenizer.encode(" the"), prompt=[1, 2])[0] == [" the", ""]


def test_a_stop_string_is_not_found_across_prompt_and_text(tokenizer: Tokenizer) -> None:
    prompt, new = tokenizer.encode("q1w"), tokenizer.encode("2e3")
    pieces, text_stream = stream(tokenizer, new, "w2", prompt=prompt)
    assert ("".join(pieces), text_stream.stopped) == ("2e3", None)


def first_complete(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, character by character."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


ALPHABET = st.sampled_from("abü🦊")


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.text(ALPHABET, max_size=4), max_size=10),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_first_stop_string(
    tokenizer: Tokenizer, parts: list[str], stops: list[str]
) -> None:
    ids = [token_id for part in parts for token_id in tokenizer.encode(part)]
    expected, stopped = first_complete("".join(parts), stops)
    pieces, text_stream = stream(tokenizer, ids, *stops)
    assert "".join(pieces) == expected
    assert text_stream.stopped == stopped
    kept = ids[: text_stream.num_kept_tokens]
    assert tokenizer.decode(kept).startswith(expected)
    if stopped is not None:
        assert not expected or not tokenizer.decode(kept[:-1]).startswith(expected)


def test_which_stop_string_ends_the_text_does_not_depend_on_tokens(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode(" the")
    letters = [token_id for letter in " the" for token_id in tokenizer.encode(letter)]
    assert (len(whole), len(letters)) == (1, 4)
    for ids in (whole, letters):
        pieces, text_stream = stream(tokenizer, ids, "the", "h")
        assert ("".join(pieces), text_stream.stopped) == (" t", "h")


def test_a_character_comes_with_its_last_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🦊")
    assert len(ids) == 4
    assert stream(tokenizer, ids)[0] == ["", "", "", "🦊", ""]


def test_an_unfinished_character_comes_out_at_the_end(tokenizer: Tokenizer) -> None:
    pieces, _ = stream(tokenizer, tokenizer.encode("a🦊")[:-1])
    assert pieces == ["a", "", "", "", "\ufffd"]


def test_replacement_characters_come_out_before_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("\ufffd" * 20 + "🦊")
    pieces, _ = stream(tokenizer, ids)
    assert "".join(pieces) == "\ufffd" * 20 + "🦊"
    assert "\ufffd" in "".join(pieces[:10])


def test_a_special_token_adds_nothing_and_tears_nothing_apart(tokenizer: Tokenizer) -> None:
    fox = tokenizer.encode("🦊")
    pieces, text_stream = stream(tokenizer, [2, *fox[:2], 1, *fox[2:], 2])
    assert pieces == ["", "", "", "", "", "🦊", "", ""]
    assert text_stream.num_kept_tokens == 7


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


def test_a_stop_string_can_be_found_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("q🦊")[:-1]
    pieces, text_stream = stream(tokenizer, ids, "\ufffd")
    assert "".join(pieces) == "q"
    assert text_stream.stopped == "\ufffd"
    assert text_stream.num_kept_tokens == 1


def test_a_special_token_stops(tokenizer: Tokenizer) -> None:
    a, b, end = *tokenizer.encode("q"), *tokenizer.encode("1"), *tokenizer.encode("<|im_end|>")
    assert tokenizer.decode([end]) == ""
    pieces, text_stream = stream(tokenizer, [a, end, b], "<|im_end|>", "1")
    assert (pieces, text_stream.stopped) == (["q", "", ""], "<|im_end|>")
    assert text_stream.num_kept_tokens == 1


def test_a_stop_string_may_hold_special_tokens_and_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("q<|im_end|>w<|im_end|>1")
    pieces, text_stream = stream(tokenizer, ids, "<|im_end|>1")
    assert ("".join(pieces), text_stream.stopped) == ("qw", "<|im_end|>1")


def test_a_special_token_in_letters_stops_too(tokenizer: Tokenizer) -> None:
    ids = [token_id for letter in "q<|im_end|>w" for token_id in tokenizer.encode(letter)]
    pieces, text_stream = stream(tokenizer, ids, "<|im_end|>")
    assert ("".join(pieces), text_stream.stopped) == ("q", "<|im_end|>")


@pytest.mark.parametrize("between", [2, 10_000])
def test_a_stop_string_is_not_found_across_a_token_without_text(
    tokenizer: Tokenizer, between: int
) -> None:
    ids = [*tokenizer.encode("q1"), between, *tokenizer.encode("w2")]
    pieces, text_stream = stream(tokenizer, ids, "1w", "|")
    assert ("".join(pieces), text_stream.stopped) == ("q1w2", None)
    assert stream(tokenizer, ids, "w2")[1].stopped == "w2"


def test_an_empty_stop_string_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="stop"):
        TextStream(tokenizer, ["a", ""])


def test_spaces_between_words_survive() -> None:
    ids = [2, 3, 5, 4, 7, 2, 3]
    pieces, _ = stream(METASPACE, ids)
    assert pieces[:2] == ["the", " cat"]
    assert "".join(pieces) == "the cats sat on the cat"


@pytest.mark.parametrize("text", ["the cat ", "<|im_end|>", "\ufffd", "漢"])
def test_a_token_costs_the_same_however_long_the_text(
    tokenizer: Tokenizer, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = Tokenizer.decode

    def spy(self: Tokenizer, token_ids: Sequence[int]) -> str:
        decoded.append(len(token_ids))
        return decode(self, token_ids)

    ids = tokenizer.encode(text * 100)
    monkeypatch.setattr(Tokenizer, "decode", spy)
    stream(tokenizer, ids)
    assert sum(decoded) <= 60 * len(ids)
    assert max(decoded, default=0) <= 16
