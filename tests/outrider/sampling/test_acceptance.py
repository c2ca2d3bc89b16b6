from __future__ import annotations

import pytest

from outrider.sampling.acceptance import accept_matching


@pytest.mark.parametrize(
    ("draft", "target", "expected"),
    [
        ([], [7], (0, 7)),
        ([1, 2, 3], [1, 2, 3, 4], (3, 4)),  # all accepted, and a bonus token
        ([1, 2, 3], [1, 9, 3, 4], (1, 9)),  # what follows a rejection is void, even if equal
        ([1, 2, 3], [8, 2, 3, 4], (0, 8)),
    ],
)
def test_accept_matching(draft: list[int], target: list[int], expected: tuple[int, int]) -> None:
    assert accept_matching(draft, target) == expected
