"""Kernel shapes, with which each row of a kernel call has the same bits in every pass.

With speculation, a token is computed in a pass with several others; with the target alone, in a
pass of its own. If the two round differently, texts diverge wherever two tokens are almost equally
likely. So kernels are called only with shapes that give each row the same bits: certain numbers of
rows and, for attention, of keys. They are determined on this CPU when a model is loaded
(`calibration.py`). Masked keys do not change a sum. Drafts do not need this, and it is not done on
GPUs or for models that are split among processes.

Each row of a product, or query of attention, is a separate sum, but the order of its additions may
depend on the number of rows. Numbers of rows with the same order form a *class*. Classes depend on
the kernel, the shape, the precision, the number of threads and the CPU, so they are determined by
comparing bits. All calls then use the numbers of rows of one class: calls with fewer rows are
padded, calls with more are split. See "Defeating Nondeterminism in LLM Inference" (Thinking
Machines Lab, 2025), which does the same for kernels on GPUs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of a step, of verifications and of shared passes, by whose cost a class is chosen.
_TYPICAL = (1, 2, 3, 5, 6, 9, 17, 40)
# A call reads the weights, which takes about as long as computing this many rows.
_CALL = 8

# Torch's attention takes 512 keys at a time, at the end as many as there are.
KEY_BLOCK = 512
KEY_STEP = 64


@dataclass(frozen=True, slots=True)
class RowSizes:
    """The permitted numbers of rows in a kernel call, ascending; empty: any."""

    sizes: tuple[int, ...] = ()

    def table(self) -> list[int]:
        """Entry i: the rows of the call that computes i rows, padding included."""
        filled: list[int] = []
        for size in self.sizes:
            filled += [size] * (size + 1 - len(filled))
        return filled

    def cost(self, num_rows: int) -> int:
        """The cost of the calls that compute `num_rows` rows, in units of one row."""
        most = self.sizes[-1]
        num_full, rest = divmod(num_rows, most)
        return num_full * (_CALL + most) + (_CALL + self.table()[rest] if rest else 0)


ANY_ROWS = RowSizes()


@dataclass(frozen=True, slots=True)
class AttentionShapes:
    """The permitted numbers of rows and keys in an attention call, padding included.

    If `rows` is empty, any shape is. The number of keys in the last block is rounded up to a
    multiple of 64 if it is at most `num_fine_keys`, otherwise to a whole block.
    """

    rows: RowSizes = ANY_ROWS
    num_fine_keys: int = 0

    @property
    def are_chosen(self) -> bool:
        return bool(self.rows.sizes)

    def queries_at_once(self, num_queries: int, groups: int) -> int:
        """How many queries one call computes, with `groups` query heads per key-value head."""
        sizes = self.rows.sizes
        return max(1, sizes[-1] // groups) if sizes else num_queries

    def attending_rows(self, num_rows: int) -> int:
        """The rows of a call that computes `num_rows` rows, padding included."""
        return next((size for size in self.rows.sizes if size >= num_rows), num_rows)

    def attended_length(self, end: int) -> int:
        """The keys of a call that attends to the first `end` keys, padding included."""
        if not self.are_chosen:
            return end
        rest = end % KEY_BLOCK
        step = KEY_STEP if rest <= self.num_fine_keys else KEY_BLOCK
        return end - rest + -(-rest // step) * step


ANY_SHAPES = AttentionShapes()


class Probe(NamedTuple):
    """A kernel, and its input rows [num_rows, ...], of which it is called with the first ones."""

    compute: Callable[[Tensor], Tensor]
    rows: Tensor


@dataclass(frozen=True, slots=True)
class FoundRows:
    """The cheapest class, and whether its bits are the same for every number of threads."""

    rows: RowSizes
    across_threads: bool


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Context manager that sets torch's number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same shape and type are bit-identical; NaN equals itself."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def find_rows(
    probes: Sequence[Probe],
    grid: Sequence[int],
    thread_counts: Sequence[int],
    at_least: int = 1,
    typical: Sequence[int] = _TYPICAL,
) -> FoundRows | None:
    """The cheapest numbers of rows that give every row the same bits; None if there are none.

    Args:
        probes: kernels that will be called with these numbers of rows.
        grid: the numbers of rows to compare, ascending.
        thread_counts: the numbers of threads that may be used; the result holds for all of them.
        at_least: the number of rows that one call must be able to compute.
        typical: the numbers of rows by which the cost is judged.
    """
    found = []  # by number of threads, then by probe
    for count in thread_counts:
        with num_threads(count):
            found.append([_classes(probe, grid) for probe in probes])
    joint: dict[tuple[int, ...], list[int]] = {}
    every = [classes for by_probe in found for classes in by_probe]
    for size in grid:
        if all(size in classes.of for classes in every):
            joint.setdefault(tuple(classes.of[size] for classes in every), []).append(size)
    candidates = [RowSizes(tuple(sizes)) for sizes in joint.values() if sizes[-1] >= at_least]
    for candidate in sorted(candidates, key=lambda each: sum(map(each.cost, typical))):
        most = candidate.sizes[-1]
        if all(_are_independent(probe, most, count) for probe in probes for count in thread_counts):
            outputs = [[each.output(most) for each in by_probe] for by_probe in found]
            across_threads = all(
                same_bits(one, other)
                for others in outputs[1:]
                for one, other in zip(outputs[0], others, strict=True)
            )
            return FoundRows(candidate, across_threads)
    return None


@dataclass(slots=True)
class _Classes:
    """`of[size]` is the number of a size's class, `outputs[number]` the output of its largest size.

    Sizes whose bits depend on a row's place are in none.
    """

    of: dict[int, int]
    outputs: list[Tensor]

    def output(self, size: int) -> Tensor:
        return self.outputs[self.of[size]][:size]


def _classes(probe: Probe, grid: Sequence[int]) -> _Classes:
    """The classes among the sizes of `grid`.

    A kernel may treat the last rows of a call differently, or the last ones of each thread's part.
    So every size is computed in two orders of its rows.
    """
    classes = _Classes({}, [])
    for size in grid:
        order = _elsewhere(size)
        output = probe.compute(probe.rows[:size])
        if not same_bits(probe.compute(probe.rows[order])[order.argsort()], output):
            continue
        for number, expected in enumerate(classes.outputs):
            if same_bits(output[: len(expected)], expected):
                classes.of[size], classes.outputs[number] = number, output
                break
        else:
            classes.of[size] = len(classes.outputs)
            classes.outputs.append(output)
    return classes


def _elsewhere(size: int) -> Tensor:
    """A random order of `size` rows in which each has another place."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(size))
    return order.roll(1)[order.argsort()]


def _are_independent(probe: Probe, size: int, count: int) -> bool:
    """Whether rows keep their bits at other places and among other neighbours."""
    rows = probe.rows[:size]
    order = _elsewhere(size)
    others = rows[order]
    others[order % 2 == 1] *= -7
    with num_threads(count):
        expected, output = probe.compute(rows), probe.compute(others)[order.argsort()]
    return same_bits(expected[::2], output[::2])
