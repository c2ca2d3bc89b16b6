"""Where draft tokens come from: the text, the speculation cache, or a draft that is asked."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from orchestrator.step import DraftSource, DraftState, StepRecord
from tests.orchestrator.decoding.test_draft import SlowVerifier
from tests.support.fakes import FakeDrafter
from tests.support.loop import (
    as_much_as_wanted,
    in_steps,
    mostly_right_model,
    plain_decoding,
    repeating_model,
    run,
    target_model,
    text,
    wants,
)

CACHED, LOOKUP, NONE = DraftSource.CACHED, DraftSource.LOOKUP, DraftSource.NONE


def stages(steps: Sequence[StepRecord]) -> set[str]:
    return {wait.stage for step in steps for wait in step.waits}


async def test_what_is_predrafted_is_taken_at_once_and_followed() -> None:
    drafter = FakeDrafter(mostly_right_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, 3, num_predrafts=2)
    assert drafter.calls == [([1, 2, 3], 0)]  # the prompt; then it was never waited for
    assert all(step.source is CACHED for step in steps[1:-1])
    committed = [1, 2, 3, *steps[0].token_ids]
    for step, (tokens, draft) in zip(steps[1:], drafter.followed, strict=False):
        assert tokens == committed
        assert draft[: step.num_accepted_tokens] == step.token_ids[:-1]
        committed += step.token_ids
    assert sum(step.hidden_draft_ns for step in steps) == 7 * len(drafter.followed)
    assert stages(steps) == {"prefill_target", "prefill_draft", "verify_compute"}


async def test_with_an_empty_cache_the_draft_is_asked() -> None:
    drafter = FakeDrafter(mostly_right_model, num_predrafted=lambda t: (len(t) // 2) % 4)
    steps = await run(drafter, 3, num_predrafts=2)
    num_hits = sum(step.source is CACHED for step in steps)
    assert 0 < num_hits == len(drafter.followed)
    assert len(drafter.calls) > 1
    assert any(step.is_cache_miss and step.num_draft_tokens for step in steps)


async def test_sequentially_nothing_is_predrafted() -> None:
    drafter = FakeDrafter(target_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, wants(3, predraft_length=9))
    assert drafter.followed == []
    assert {step.source for step in steps[1:-1]} == {DraftSource.DRAFTED}
    assert not any(step.is_cache_miss for step in steps)


async def test_a_draft_that_is_not_worth_waiting_for_predrafts_for_the_next_result() -> None:
    drafter = FakeDrafter(mostly_right_model, num_predrafted=lambda tokens: len(tokens) % 3)
    slow = SlowVerifier(target_model)
    steps = await run(drafter, wants(3, miss_length=0), num_predrafts=2, target=slow)
    assert text(steps) == plain_decoding([1, 2, 3], 40)
    assert len(drafter.calls) == 1  # for the prompt
    missed = [step for step in steps if step.is_cache_miss]
    assert missed
    assert all(step.num_draft_tokens == 0 for step in missed)
    assert any(step.source is CACHED for step in steps)
    committed = [1, 2, 3, *steps[0].token_ids]
    for step, (tokens, draft) in zip(steps[1:], drafter.followed, strict=False):
        assert tokens == committed
        assert len(draft) == step.num_draft_tokens
        committed += step.token_ids


@pytest.mark.parametrize("cache_wait_ns", [0.0, 60e9])
async def test_what_is_under_way_is_waited_for_as_long_as_it_is_worth(cache_wait_ns: float) -> None:
    drafter = FakeDrafter(mostly_right_model, num_predrafted=lambda tokens: 2, is_late=True)
    decision = wants(3, miss_length=0, cache_wait_ns=cache_wait_ns)
    steps = await run(drafter, decision, num_predrafts=2, target=SlowVerifier(target_model))
    assert text(steps) == plain_decoding([1, 2, 3], 40)
    found = [step.source is CACHED for step in steps[3:-1]]
    assert all(found) if cache_wait_ns else not any(found)
    assert len(drafter.calls) == 1  # for the prompt


async def test_the_prompt_is_not_waited_for_either() -> None:
    drafter = FakeDrafter(mostly_right_model, num_predrafted=lambda tokens: 2)
    steps = await run(drafter, wants(3, miss_length=0), num_predrafts=2)  # the target never waits
    assert text(steps) == plain_decoding([1, 2, 3], 40)
    assert not any(step.num_draft_tokens or step.is_cache_miss for step in steps)
    assert {step.draft_state for step in steps} == {DraftState.PREFILLING}


async def test_what_repeats_needs_no_draft() -> None:
    steps = await run(None, 8, 60, looks_up=True, target=repeating_model)
    looked_up = [step for step in steps if step.source is LOOKUP]
    # A match of n tokens gives n, as far as the text goes.
    assert [step.num_accepted_tokens for step in looked_up][:3] == [2, 5, 7]
    assert len(steps) - len(looked_up) == 9  # the first round, and its first two tokens again
    assert stages(steps) == {"prefill_target", "verify_compute"}


async def test_the_draft_predrafts_behind_what_was_looked_up() -> None:
    drafter = FakeDrafter(repeating_model)
    steps = await run(drafter, 4, 60, num_predrafts=2, looks_up=True, target=repeating_model)
    assert sum(step.source is LOOKUP for step in steps) == len(drafter.followed) > 0
    committed = [1, 2, 3, *text(steps)]
    for tokens, draft in drafter.followed:
        assert tokens == committed[: len(tokens)]
        assert draft == tuple(committed[len(tokens) : len(tokens) + len(draft)])


async def test_one_token_that_stood_there_before_does_not_replace_a_draft() -> None:
    def every_other_is_five(tokens: Sequence[int]) -> int:
        return len(tokens) if len(tokens) % 2 else 5

    drafter = FakeDrafter(every_other_is_five)
    steps = await run(drafter, 4, looks_up=True, target=every_other_is_five)
    assert len(drafter.calls) > 1
    assert not any(step.source is LOOKUP for step in steps)


async def test_a_draft_that_is_lost_while_following_costs_speed_only() -> None:
    for fails_at in range(1, 6):
        drafter = FakeDrafter(repeating_model, fails_at=fails_at)
        steps = await run(drafter, 4, 60, num_predrafts=2, looks_up=True, target=repeating_model)
        assert text(steps) == plain_decoding([1, 2, 3], 60, repeating_model)
        assert len(drafter.calls) + len(drafter.followed) == fails_at + 1


async def test_a_predraft_goes_before_a_short_match_that_says_otherwise() -> None:
    def two_of_three_come_again(tokens: Sequence[int]) -> int:
        return (5, 6, 100 + len(tokens))[len(tokens) % 3]

    wrong = {}
    for num_predrafts in (0, 2):
        drafter = FakeDrafter(two_of_three_come_again, num_predrafted=as_much_as_wanted)
        steps = await run(
            drafter, 1, 60, num_predrafts, looks_up=True, target=two_of_three_come_again
        )
        assert text(steps) == plain_decoding([1, 2, 3], 60, two_of_three_come_again)
        wrong[num_predrafts] = sum(s.num_accepted_tokens < s.num_draft_tokens for s in steps)
    assert wrong[0] > 5  # without predrafts, what follows 5 and 6 is taken for what it was
    assert wrong[2] == 0


async def test_a_draft_that_does_not_predraft_reads_with_the_next_proposal() -> None:
    """What is looked up meanwhile is no message of its own, which would delay the target."""
    drafter = FakeDrafter(target_model)
    policy = wants(3, predrafts=False)
    steps = await run(drafter, policy, num_predrafts=2, looks_up=True)
    assert {step.source for step in steps[1:]} >= {DraftSource.DRAFTED, DraftSource.LOOKUP}
    assert drafter.followed == []
    assert not any(step.is_predrafting or step.is_cache_miss for step in steps)


async def test_predrafting_ends_as_soon_as_it_is_not_wanted() -> None:
    drafter = FakeDrafter(target_model, num_predrafted=as_much_as_wanted)
    policy = in_steps(*[wants(2)] * 4, *[wants(2, predrafts=False)] * 4)
    steps = await run(drafter, policy, num_predrafts=2)
    assert [step.is_predrafting for step in steps[1:7]] == [True] * 3 + [False] * 3
    assert steps[6].source is DraftSource.DRAFTED
