from __future__ import annotations

from collections.abc import Sequence

import pytest

from orchestrator.decoding.decoder import Step, decode
from orchestrator.policy.draft_length import FixedLength
from orchestrator.policy.experience import Experience
from orchestrator.policy.round_trip import Distance
from orchestrator.reporting import latency
from orchestrator.reporting.latency import CriticalPath
from outrider.errors import ServiceUnavailable
from outrider.protocol.messages import PredraftPlan, Proposal
from tests.support.fakes import FakeDrafter, FakeVerifier, Far, NextToken, nothing_predrafted


def target_model(tokens: list[int]) -> int:
    return (sum(tokens) * 7 + len(tokens)) % 50


def unrelated_model(tokens: list[int]) -> int:
    return (sum(tokens) * 3 + 1) % 50


def mostly_right_model(tokens: list[int]) -> int:
    return target_model(tokens) if len(tokens) % 4 else 0


def repeating_model(tokens: list[int]) -> int:
    return 60 + len(tokens) % 7


def plain_decoding(
    prompt: list[int], max_length: int, target: NextToken = target_model
) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < max_length:
        tokens.append(target(tokens))
    return tokens[len(prompt) :]


async def run(
    drafter: FakeDrafter | None,
    k: int,
    max_length: int = 40,
    num_predrafts: int = 0,
    path: CriticalPath | None = None,
    looks_up: bool = False,
    target: NextToken = target_model,
    distance: Distance | None = None,
) -> list[Step]:
    verifier = FakeVerifier(target)
    path = path or CriticalPath()
    lengths = FixedLength(k, Experience())
    steps = decode(
        [1, 2, 3], max_length, verifier, drafter, lengths, path, num_predrafts, looks_up, distance
    )
    return [step async for step in steps]


def text(steps: list[Step]) -> list[int]:
    return [token_id for step in steps for token_id in step.token_ids]


def as_much_as_wanted(tokens: list[int]) -> int:
    return 99


def some_of_it(tokens: list[int]) -> int:
    return (len(tokens) // 2) % 4


PREDRAFT_PLANS = [nothing_predrafted, as_much_as_wanted, some_of_it]


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("draft_model", [target_model, unrelated_model, mostly_right_model])
@pytest.mark.parametrize("num_predrafted", PREDRAFT_PLANS)
async def test_output_is_plain_decoding_whatever_the_draft(
    num_predrafted: NextToken, draft_model: NextToken, k: int
) -> None:
    for num_predrafts, distance in ((0, None), (3, None), (0, Far()), (3, Far())):
        drafter = FakeDrafter(draft_model, num_predrafted=num_predrafted)
        steps = await run(drafter, k, num_predrafts=num_predrafts, distance=distance)
        assert text(steps) == plain_decoding([1, 2, 3], 40)


@pytest.mark.parametrize("max_length", range(4, 16))
@pytest.mark.parametrize("num_predrafts", [0, 2])
async def test_never_goes_beyond_max_length(num_predrafts: int, max_length: int) -> None:
    drafter = FakeDrafter(target_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, 4, max_length, num_predrafts, distance=Far())
    assert text(steps) == plain_decoding([1, 2, 3], max_length)


async def test_a_perfect_draft_is_accepted_whole() -> None:
    steps = await run(FakeDrafter(target_model), 4, max_length=3 + 1 + 5 * 3)
    assert [(s.num_draft_tokens, s.num_accepted_tokens) for s in steps[1:]] == [(4, 4)] * 3


async def test_without_draft_every_step_commits_one_token() -> None:
    steps = await run(None, 4)
    assert {(len(s.token_ids), s.num_draft_tokens) for s in steps} == {(1, 0)}


async def test_k_zero_asks_for_no_draft_tokens() -> None:
    drafter = FakeDrafter(target_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, 0, num_predrafts=3)
    assert all(k == 0 for _, k in drafter.calls)  # it may read the prompt
    assert drafter.followed == []
    assert {step.num_draft_tokens for step in steps} == {0}


async def test_the_draft_reads_the_prompt_beside_the_target() -> None:
    drafter = FakeDrafter(target_model)
    await run(drafter, 3)
    assert drafter.calls[0] == ([1, 2, 3], 0)


@pytest.mark.parametrize("fails_at", range(8))
@pytest.mark.parametrize("num_predrafted", PREDRAFT_PLANS)
async def test_a_lost_draft_costs_speed_only(num_predrafted: NextToken, fails_at: int) -> None:
    for distance in (None, Far()):
        drafter = FakeDrafter(mostly_right_model, fails_at=fails_at, num_predrafted=num_predrafted)
        steps = await run(drafter, 3, num_predrafts=2, distance=distance)
        assert text(steps) == plain_decoding([1, 2, 3], 40)
        assert len(drafter.calls) + len(drafter.followed) == fails_at + 1  # it is not asked again


async def test_what_is_predrafted_is_taken_at_once_and_followed() -> None:
    drafter = FakeDrafter(mostly_right_model, num_predrafted=as_much_as_wanted)
    path = CriticalPath()
    steps = await run(drafter, 3, num_predrafts=2, path=path)
    assert drafter.calls == [([1, 2, 3], 0)]  # the prompt; then it was never waited for
    assert all(step.drafted.is_cache_hit for step in steps[1:-1])
    committed = [1, 2, 3, *steps[0].token_ids]
    for step, (tokens, draft) in zip(steps[1:], drafter.followed, strict=False):
        assert tokens == committed
        assert draft[: step.num_accepted_tokens] == step.token_ids[:-1]
        committed += step.token_ids
    assert path.hidden["draft_compute"] == 7 * len(drafter.followed)
    assert not [stage for stage in path.stages if stage.startswith("draft_")]


async def test_with_an_empty_table_the_draft_is_asked() -> None:
    drafter = FakeDrafter(mostly_right_model, num_predrafted=some_of_it)
    steps = await run(drafter, 3, num_predrafts=2)
    num_predrafted = sum(step.drafted.is_cache_hit for step in steps)
    assert 0 < num_predrafted == len(drafter.followed)
    assert len(drafter.calls) > 1


async def test_without_branches_nothing_is_predrafted() -> None:
    drafter = FakeDrafter(target_model, num_predrafted=as_much_as_wanted)
    steps = await run(drafter, 3)
    assert drafter.followed == []
    assert not any(step.drafted.is_cache_hit for step in steps)


async def test_a_draft_that_is_not_used_is_told_to_rest_once() -> None:
    class Scripted(FixedLength):
        lengths = iter([2, 2, 2, 0, 0, 0, 2, 0, *[0] * 40])

        def next_length(self) -> int:
            return next(self.lengths)

    drafter = FakeDrafter(unrelated_model)
    lengths = Scripted(0, Experience())
    verifier = FakeVerifier(target_model)
    steps = decode([1, 2, 3], 40, verifier, drafter, lengths, CriticalPath(), num_predrafts=2)
    drafted = [step.num_draft_tokens async for step in steps][1:8]
    assert drafted == [2, 2, 0, 0, 0, 0, 0]
    assert [draft for _, draft in drafter.followed] == [(), (), ()]
    # It rests; when it is wanted again it reads, and is not waited for; it rests.
    assert [len(tokens) for tokens, _ in drafter.followed] == [6, 9, 10]


async def test_reading_the_prompt_is_not_a_cost_of_drafting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_ns = 0

    def clock() -> int:
        nonlocal now_ns
        now_ns += 1
        return now_ns

    class SlowReader(FakeDrafter):
        async def propose(
            self, tokens: Sequence[int], num_speculative_tokens: int, predraft_plan: PredraftPlan
        ) -> Proposal:
            nonlocal now_ns
            now_ns += 0 if num_speculative_tokens else 10**9
            return await super().propose(tokens, num_speculative_tokens, predraft_plan)

    monkeypatch.setattr(latency.time, "perf_counter_ns", clock)
    lengths, path = FixedLength(3, Experience()), CriticalPath()
    drafter = SlowReader(target_model)
    async for _ in decode([1, 2], 30, FakeVerifier(target_model), drafter, lengths, path):
        pass
    assert path.stages["prefill_draft"] >= 10**9
    assert lengths.experience.draft_ns.at(3) < 10**6


async def test_a_lost_target_is_an_error_after_what_was_committed() -> None:
    committed: list[int] = []
    verifier = FakeVerifier(target_model, fails_at=3)
    with pytest.raises(ServiceUnavailable):
        async for step in decode(
            [1], 40, verifier, None, FixedLength(0, Experience()), CriticalPath()
        ):
            committed.extend(step.token_ids)
    assert committed == plain_decoding([1], 4)


async def test_beyond_the_drafts_context_the_target_goes_on_alone() -> None:
    drafter = FakeDrafter(target_model, max_context_length=12)
    steps = await run(drafter, 4)
    assert text(steps) == plain_decoding([1, 2, 3], 40)
    assert all(len(tokens) + k <= 12 for tokens, k in drafter.calls)


@pytest.mark.parametrize("k", range(9))
@pytest.mark.parametrize("target", [target_model, repeating_model])
@pytest.mark.parametrize("draft_model", [None, unrelated_model, repeating_model])
async def test_output_is_plain_decoding_with_tokens_from_the_text(
    draft_model: NextToken | None, target: NextToken, k: int
) -> None:
    for num_predrafted in PREDRAFT_PLANS:
        for distance in (None, Far()):
            drafter = draft_model and FakeDrafter(draft_model, num_predrafted=num_predrafted)
            steps = await run(
                drafter, k, 60, num_predrafts=3, looks_up=True, target=target, distance=distance
            )
            assert text(steps) == plain_decoding([1, 2, 3], 60, target)


async def test_what_repeats_needs_no_draft() -> None:
    path = CriticalPath()
    steps = await run(None, 8, 60, path=path, looks_up=True, target=repeating_model)
    looked_up = [step for step in steps if step.drafted.was_looked_up]
    # A match of n tokens gives n, as far as the text goes.
    assert [step.num_accepted_tokens for step in looked_up][:3] == [2, 5, 7]
    assert len(steps) - len(looked_up) == 9  # the first round, and its first two tokens again
    assert not [stage for stage in path.stages if stage.startswith("draft_")]


async def test_the_draft_predrafts_behind_what_was_looked_up() -> None:
    drafter = FakeDrafter(repeating_model)
    steps = await run(drafter, 4, 60, num_predrafts=2, looks_up=True, target=repeating_model)
    looked_up = [step for step in steps if step.drafted.was_looked_up]
    assert len(looked_up) == len(drafter.followed) > 0
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
    assert not any(step.drafted.was_looked_up for step in steps)


async def test_a_draft_that_is_lost_while_following_costs_speed_only() -> None:
    for fails_at in range(1, 6):
        drafter = FakeDrafter(repeating_model, fails_at=fails_at)
        steps = await run(drafter, 4, 60, num_predrafts=2, looks_up=True, target=repeating_model)
        assert text(steps) == plain_decoding([1, 2, 3], 60, repeating_model)
        assert len(drafter.calls) + len(drafter.followed) == fails_at + 1
