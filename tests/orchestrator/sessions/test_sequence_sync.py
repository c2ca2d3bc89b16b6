from __future__ import annotations

from orchestrator.sessions.sequence_sync import SequenceSync


def test_a_fresh_session_gets_everything() -> None:
    assert SequenceSync().difference([1, 2, 3]) == (0, [1, 2, 3])


def test_accepted_draft_tokens_do_not_travel_again() -> None:
    sync = SequenceSync()
    sync.hold([1, 2], [3, 4, 5], sequence_length=4)  # the last draft token was not read
    assert sync.difference([1, 2, 3, 4, 5, 6]) == (4, [5, 6])


def test_rejected_draft_tokens_are_rolled_back() -> None:
    sync = SequenceSync()
    sync.hold([1, 2], [3, 4, 5], sequence_length=5)
    assert sync.difference([1, 2, 3, 9]) == (3, [9])
    assert sync.difference([1, 2, 9]) == (2, [9])


def test_something_is_always_appended() -> None:
    sync = SequenceSync()
    sync.hold([1, 2, 3], [], sequence_length=3)
    assert sync.difference([1, 2, 3]) == (2, [3])
