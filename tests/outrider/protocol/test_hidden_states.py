from outrider.protocol import codec
from outrider.protocol.hidden_states import MAX_BYTES, HiddenStates, HiddenStateSpec
from outrider.protocol.messages import ModelInfo, VerifyResult


def states(first: int, num_tokens: int, row_bytes: int) -> HiddenStates:
    indices = range(first, first + num_tokens)
    rows = [index.to_bytes(4, "little") * (row_bytes // 4) for index in indices]
    return HiddenStates(first, num_tokens, b"".join(rows))


def test_a_part_has_the_rows_of_its_tokens() -> None:
    assert states(5, 9, 12).part(7, 10) == states(7, 3, 12)


def test_pieces_fit_a_message_and_are_all_there() -> None:
    row_bytes = 2**18
    assert [
        (piece.first_index, piece.num_tokens) for piece in states(3, 9, row_bytes).pieces()
    ] == [
        (3, 4),
        (7, 4),
        (11, 1),
    ]
    assert (
        b"".join(p.data for p in states(3, 9, row_bytes).pieces()) == states(3, 9, row_bytes).data
    )


def test_a_row_that_is_too_large_goes_alone() -> None:
    assert len(states(0, 2, MAX_BYTES + 4).pieces()) == 2


def test_layers_that_are_not_named_are_those_of_the_authors() -> None:
    assert HiddenStateSpec((), 8, 64).of_target(30).layers == (2, 15, 27)
    assert HiddenStateSpec((4, 5), 8, 64).of_target(30).layers == (4, 5)


def test_there_is_a_piece_even_of_nothing() -> None:
    assert states(4, 0, 12).pieces() == [HiddenStates(4, 0, b"")]


def test_they_pass_the_wire() -> None:
    spec = HiddenStateSpec((1, 4), 3, 64)
    draft = ModelInfo("d", 9, 9, reads_hidden_states=spec)
    target = ModelInfo("t", 9, 9, num_layers=5, hidden_size=3, gives_hidden_states=True)
    for info in (draft, target):
        assert codec.model_info_from_wire(codec.model_info_to_wire(info)) == info
    result = VerifyResult(9, 2, 7, True, 11, hidden_states=states(8, 3, spec.row_bytes))
    assert codec.verify_result_from_wire(codec.verify_result_to_wire(result).result) == result
    assert codec.verify_result_from_wire(
        codec.verify_result_to_wire(VerifyResult(9, 2, 7, True, 11)).result
    ) == VerifyResult(9, 2, 7, True, 11)
