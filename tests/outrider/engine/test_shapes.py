"""Numbers of rows that give every row the same bits are found, whatever a kernel's classes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from outrider.engine.cpu import calibration
from outrider.engine.cpu.packed_linear import RowLinear
from outrider.engine.shapes import KEY_BLOCK, Probe, RowSizes, find_rows, same_bits

GRID = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32, 64)
SIZE = 96

Order = Callable[[int, int], int]
"""Which order of adding up a row has: of the number of rows, and its place among them."""

CLASSES: dict[str, tuple[Order, tuple[int, ...]]] = {
    # As on an AMD Zen 3 and Zen 5, in MKL's products of float32.
    "1, 2-3, 4 and more": (lambda n, _: min(n, 4) // 2, GRID[3:]),
    # As on a Zen 3, in FBGEMM's products of weights in float16.
    "1, 2, 3 and more": (lambda n, _: min(n, 3), GRID[2:]),
    "one": (lambda n, _: 0, GRID),
    # As with AMX in bfloat16.
    "up to 32, more": (lambda n, _: n > 32, GRID[:-1]),
    # As with AVX-512 in bfloat16 by two threads: what is left over has an order of its own.
    "even": (lambda n, row: n % 2 * (row == n - 1), (2, 4, 6, 8, 12, 16, 32, 64)),
}


class StandIn(RowLinear):
    """A product of float32 whose rows are added up in the orders that it is told."""

    def __init__(self, order: Order) -> None:
        weight = torch.randn(7, SIZE, generator=torch.Generator().manual_seed(1))
        super().__init__(weight, None)
        self.weight, self.order = weight, order

    def multiply(self, rows: Tensor) -> Tensor:
        places = [1 + int(self.order(len(rows), place)) for place in range(len(rows))]
        products = (rows[:, None] * self.weight).unbind()
        return torch.stack(
            [
                row[:, :at].sum(1) + row[:, at:].sum(1)
                for row, at in zip(products, places, strict=True)
            ]
        )


def rows_of(seed: int) -> Tensor:
    return torch.randn(64, SIZE, generator=torch.Generator().manual_seed(seed))


def found_for(layer: RowLinear, thread_counts: tuple[int, ...] = (1,)) -> RowSizes | None:
    found = find_rows([Probe(layer.multiply, rows_of(2))], GRID, thread_counts)
    return found.rows if found else None


def keeps_its_bits(layer: RowLinear, rows: Tensor) -> bool:
    alone = torch.cat([layer(row[None]) for row in rows])
    return all(same_bits(layer(rows[:n]), alone[:n]) for n in range(1, len(rows) + 1))


@pytest.mark.parametrize("name", CLASSES)
def test_the_cheapest_class_is_found(name: str) -> None:
    order, sizes = CLASSES[name]
    layer = StandIn(order)
    found = found_for(layer)
    assert found is not None
    assert found.sizes == sizes
    assert name == "one" or not keeps_its_bits(layer, rows_of(3))
    layer.use(found)
    assert keeps_its_bits(layer, rows_of(3))


def test_where_no_two_numbers_agree_all_products_have_the_same() -> None:
    layer = StandIn(lambda n, _: n)
    found = found_for(layer)
    assert found is not None
    assert len(found.sizes) == 1
    layer.use(found)
    assert keeps_its_bits(layer, rows_of(3))


def test_rows_that_depend_on_their_neighbours_have_none() -> None:
    """As in int8 with one range for all rows."""

    class OneRange(StandIn):
        def multiply(self, rows: Tensor) -> Tensor:
            return super().multiply((rows / rows.abs().max() * 127).round())

    assert found_for(OneRange(lambda n, _: 0)) is None


def test_rows_that_depend_on_their_place_have_only_calls_of_one() -> None:
    found = found_for(StandIn(lambda n, row: row))
    assert found == RowSizes((1,))


def test_one_choice_serves_all_numbers_of_threads() -> None:
    """As in MKL's float32: with one thread from 2 rows on, with two from 4 on, and other bits."""

    def order(n: int, _: int) -> int:
        return min(n, 2) if torch.get_num_threads() == 1 else 2 + min(n, 4) // 2

    layer = StandIn(order)
    found = find_rows([Probe(layer.multiply, rows_of(2))], GRID, (2, 1))
    assert found is not None
    assert found.rows.sizes == GRID[3:]
    assert not found.across_threads
    layer = StandIn(lambda n, _: min(n, 3))
    found = find_rows([Probe(layer.multiply, rows_of(2))], GRID, (2, 1))
    assert found is not None
    assert found.across_threads


def test_a_call_can_take_what_it_must() -> None:
    """A query's heads that share keys attend together, however many they are."""
    probe = Probe(StandIn(lambda n, _: n > 4).multiply, rows_of(2))
    found = find_rows([probe], GRID, (1,), at_least=8)
    assert found is not None
    assert found.rows.sizes == GRID[4:]


def test_keys_are_filled_up_to_whole_blocks_where_nothing_else_keeps_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attend = calibration.scaled_dot_product_attention

    def by_length(queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor) -> Tensor:
        assert keys.shape[2] == attn_mask.shape[1]
        return attend(queries, keys, values, attn_mask=attn_mask) + keys.shape[2] % KEY_BLOCK

    monkeypatch.setattr(calibration, "scaled_dot_product_attention", by_length)
    find_attention = calibration.find_attention.__wrapped__  # what it found before is kept
    found = find_attention((calibration.AttentionKind(2, 1, 16),), torch.float32, (1,), 10_000)
    assert found is not None
    assert found.shapes.num_fine_keys == 0


def test_an_order_of_adding_up_shows_in_half_precision_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attend = calibration.scaled_dot_product_attention

    def reversed_between(
        queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor
    ) -> Tensor:
        if 256 < keys.shape[2] < KEY_BLOCK:
            keys, values, attn_mask = keys.flip(2), values.flip(2), attn_mask.flip(1)
        return attend(queries, keys, values, attn_mask=attn_mask)

    monkeypatch.setattr(calibration, "scaled_dot_product_attention", reversed_between)
    find_attention = calibration.find_attention.__wrapped__
    found = find_attention((calibration.AttentionKind(2, 1, 16),), torch.bfloat16, (1,), 10_000)
    assert found is None or found.shapes.num_fine_keys <= 256


def test_rows_at_the_ends_of_what_each_thread_has_are_noticed() -> None:
    """As of MKL's products with AVX2 and two threads, which part the rows in halves of fours."""

    def order(num_rows: int, place: int) -> int:
        part = -(-num_rows // 2) if num_rows > 8 else num_rows
        return int(place % part >= part // 4 * 4)

    found = found_for(StandIn(order))
    assert found is not None
    assert all(size % (8 if size > 8 else 4) == 0 for size in found.sizes)


def test_nan_is_compared_by_its_bits() -> None:
    layer = StandIn(lambda n, _: 0)
    layer.weight[0] = float("nan")
    assert found_for(layer) == RowSizes(GRID)
