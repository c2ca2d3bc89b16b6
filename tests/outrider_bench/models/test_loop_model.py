"""The model of the loop on texts that can be followed by hand."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from outrider_bench.harness import conclusions
from outrider_bench.harness.conclusions import (
    conclude,
    read_texts,
    speedups_if,
    speedups_on_own_hosts,
)
from outrider_bench.models.loop_model import (
    Place,
    Times,
    best_fan_out,
    best_speedup,
    chosen_texts,
    predrafted_length,
    replay,
    what_if,
)
from outrider_bench.what_if import what_if as what_if_command

TIMES = Times(
    target_alone=10,
    verify=10,
    verify_per_token=1,
    draft=0,
    draft_step=2,
    draft_per_predraft=0,
    overhead=0.5,
    draft_overhead=0.25,
)
PROBS = (0.6, 0.3, 0.1)
RIGHT = Place(0, PROBS, True)
FIRST_RUNNER_UP = Place(1, PROBS, False)
NOWHERE = Place(17, PROBS, False)


def test_in_turn_a_step_is_drafting_and_verifying() -> None:
    # First token; 2 accepted and a bonus token; 0 accepted; no room for a draft.
    text = [RIGHT, RIGHT, RIGHT, NOWHERE, NOWHERE, RIGHT]
    found = replay([text], TIMES, k=2)
    full_step = (2 * 2 + 0.25) + (10 + 2 + 0.5)
    short_step = (1 * 2 + 0.25) + (10 + 1 + 0.5)
    assert found.ms == pytest.approx(full_step + short_step + 10.5)
    assert (found.num_steps, found.num_hits, found.num_accepted, found.num_tokens) == (2, 0, 2, 5)


def test_a_proposal_ends_where_the_draft_is_unsure_of_it() -> None:
    unsure = Place(0, (0.5, 0.5), True)
    text = [RIGHT, RIGHT, unsure, RIGHT, RIGHT, RIGHT]
    whole = replay([text], TIMES, k=4, min_confidence=0.0)
    found = replay([text], TIMES, k=4, min_confidence=0.4)  # 0.6, then 0.3: two tokens
    assert whole.ms - found.ms == pytest.approx(2 * (2 + 1) - (2 + 0.25 + 11.5))
    assert (whole.num_accepted, found.num_accepted) == (4, 2 + 1)


def test_on_a_hit_only_the_verification_counts() -> None:
    text = [RIGHT] * 8
    found = replay([text], TIMES, k=2, num_predrafts=4)
    miss = (2 * 2 + 0.25) + 12.5
    hit = 12.5
    # 3 + 3 tokens, then one that has no room for a draft.
    assert found.ms == pytest.approx(miss + hit + 10.5)
    assert (found.num_steps, found.num_hits) == (2, 1)


def test_round_trips_are_waited_for_and_leave_less_time_to_prepare() -> None:
    text = [RIGHT] * 60
    near = replay([text], TIMES, 2)
    far = replay([text], dataclasses.replace(TIMES, rtt_draft=20, rtt_target=10), 2)
    assert far.ms - near.ms == pytest.approx(30 * near.num_steps)
    hidden = replay([text], dataclasses.replace(TIMES, rtt_draft=4), 2, num_predrafts=4)
    assert hidden.hit_rate > 0.9
    # What takes longer to hear of than to verify cannot be predrafted in time.
    late = replay([text], dataclasses.replace(TIMES, rtt_draft=20), 2, num_predrafts=4)
    assert late.hit_rate == pytest.approx(0.5, abs=0.05)


def test_what_is_under_way_when_the_result_comes_is_waited_for() -> None:
    """A verification of 12 leaves time for one pass of 8; the next one is at its half."""
    slow = dataclasses.replace(TIMES, draft_step=8)
    found = replay([[RIGHT] * 9], slow, k=2, num_predrafts=1)
    # 3 tokens; 2, after 4 ms for the one drafted; 2, after the 5 ms that 11 leave; the last one.
    steps = [2 * 8 + 0.25 + 12.5, 4 + 11.5, 5 + 11.5, 10.5]
    assert (found.num_steps, found.num_hits) == (3, 2)
    assert found.ms == pytest.approx(sum(steps))


@pytest.mark.parametrize(
    ("accepted", "ahead", "expected"),
    [
        (2, [RIGHT, RIGHT, RIGHT], 4),  # one pass guesses the bonus token
        (2, [RIGHT, RIGHT, FIRST_RUNNER_UP], 0),
        (0, [FIRST_RUNNER_UP, RIGHT, RIGHT], 5),
        (1, [RIGHT, FIRST_RUNNER_UP, RIGHT], 5),
        (1, [RIGHT, NOWHERE, RIGHT], 0),
    ],
)
def test_what_is_predrafted(accepted: int, ahead: list[Place], expected: int) -> None:
    assert predrafted_length(ahead, 2, accepted, num_predrafts=4, num_passes=5) == expected


def test_one_branch_predrafts_for_no_correction() -> None:
    ahead = [FIRST_RUNNER_UP, RIGHT]
    assert predrafted_length(ahead, 1, 0, num_predrafts=1, num_passes=5) == 0


def test_the_best_length_is_none_where_nothing_is_right() -> None:
    assert best_speedup([[NOWHERE] * 30], TIMES, 4) == (1.0, 0)
    speedup, k = best_speedup([[RIGHT] * 30], TIMES, 4)
    assert speedup > 2
    assert k > 4


def test_a_draft_that_is_mostly_right_predrafts_for_few_outcomes() -> None:
    """Passes over few predrafts are shorter, so that there are more of them in time."""
    times = dataclasses.replace(TIMES, draft_step=3, draft_per_predraft=1)
    right = [[RIGHT] * 40]
    best = best_fan_out(right, times, k=4, num_predrafts=4)
    assert best.ms == replay(right, times, 4, num_predrafts=1).ms < replay(right, times, 4, 4).ms
    corrected = [[FIRST_RUNNER_UP] * 40]
    best = best_fan_out(corrected, times, k=1, num_predrafts=4)
    assert best.ms < replay(corrected, times, 1, num_predrafts=1).ms
    assert best_fan_out(right, times, 4, 0).num_hits == 0  # in turn


def test_other_times_change_what_they_say() -> None:
    text = [RIGHT, RIGHT, RIGHT, FIRST_RUNNER_UP] * 10
    ms = {name: replay([text], t, 3, 4).ms for name, t in what_if(TIMES).items()}
    assert ms["verification flat in k"] < ms["as measured"] < ms["draft 20 ms away"]
    assert ms["draft twice as fast"] < ms["as measured"]


def test_nothing_is_concluded_without_draft_tokens() -> None:
    assert conclude({}, 4) == {}
    way = {"critical_path_ms_per_token": {}, "num_tokens": 4, "num_prompts": 1}
    lengths = {"target only": way, "sequential": {1: way}, "pipelined": {1: way}}
    assert conclude({"lengths": lengths}, 4) == {}


def test_the_command_reads_a_result_and_changes_its_times(tmp_path: Path) -> None:
    texts = [[RIGHT.stored()] * 20]
    times = {mode: dataclasses.asdict(TIMES) for mode in ("sequential", "pipelined")}
    sections = {"trace": {"greedy": {"texts": texts}}}
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"sections": sections, "conclusions": {"times": times}}))
    assert read_texts(json.loads(json.dumps(texts))) == [[RIGHT] * 20]
    before = CliRunner().invoke(what_if_command, [str(result)])
    after = CliRunner().invoke(what_if_command, [str(result), "--rtt-draft", "30"])
    assert before.exit_code == after.exit_code == 0
    assert "sequential k =  1" in before.output
    assert before.output != after.output
    result.write_text("{}")
    refused = CliRunner().invoke(what_if_command, [str(result)])
    assert "has no trace" in str(refused.exception)


@pytest.fixture
def few_chosen_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conclusions, "chosen_texts", partial(chosen_texts, num_texts=12))


@pytest.mark.usefixtures("few_chosen_texts")
def test_hosts_of_their_own_have_the_verifications_of_the_loop_in_turn() -> None:
    texts = [[RIGHT] * 30]
    disturbed = dataclasses.replace(TIMES, verify=15.0)
    times = {"sequential": TIMES, "pipelined": disturbed}
    apart = speedups_on_own_hosts(texts, times, 4)
    together = speedups_if(texts, times, 4)["as measured"]
    assert apart["the draft"]["as measured"]["sequential"] == together["sequential"]
    assert apart["the draft"]["as measured"]["pipelined"] > together["pipelined"]
    for by_times in apart.values():
        pipelined = {name: found["pipelined"] for name, found in by_times.items()}
        assert pipelined["as measured"] < pipelined["verification flat in k"] < pipelined["both"]
    by_draft = [apart[f"accepted {acceptance}"]["both"]["sequential"] for acceptance in (0.8, 0.95)]
    assert by_draft == sorted(by_draft)


@pytest.mark.usefixtures("few_chosen_texts")
def test_a_draft_for_nothing_is_the_bound_of_its_acceptance() -> None:
    times = {"sequential": TIMES, "pipelined": TIMES}
    apart = speedups_on_own_hosts([[RIGHT] * 30], times, 4)
    for acceptance in (0.8, 0.95):
        by_times = apart[f"accepted {acceptance}"]
        bound = by_times["draft for nothing"]["sequential"]
        assert bound >= by_times["draft for nothing"]["pipelined"]
        assert bound > by_times["draft twice as fast"]["pipelined"]
        step_ms = [TIMES.verify + TIMES.overhead + k * TIMES.verify_per_token for k in range(17)]
        tokens = [(1 - acceptance ** (k + 1)) / (1 - acceptance) for k in range(17)]
        most = max(n / ms for n, ms in zip(tokens, step_ms, strict=True)) * TIMES.target_alone
        assert bound == pytest.approx(most, rel=0.05)


def test_chosen_texts_are_accepted_as_often_as_chosen() -> None:
    places = [place for text in chosen_texts(0.8) for place in text]
    assert sum(place.rank == 0 for place in places) / len(places) == pytest.approx(0.8, abs=0.02)
    assert all(place.guesses_bonus == (place.rank == 0) for place in places)
    assert places[0].probs[0] == 0.8
    assert sum(places[0].probs) < 1
