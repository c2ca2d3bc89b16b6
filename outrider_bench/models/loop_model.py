"""A model of the loop: replays recorded texts with other times of draft, target and network.

`outrider bench` records where the draft is right, and its runners-up (section "trace"), and
measures the times. `conclusions.py` compares the model with the measurement, `what_if.py`
runs it with other times.
"""

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from draft_service.drafters.outcomes import likeliest_corrections
from draft_service.drafters.replay import RUNNER_UP_CHANCES, draw_ranks
from draft_service.settings import DEFAULT_MIN_CONFIDENCE
from outrider.sampling.sampler import Choice

_SHORTEST_PASS_MS = 1e-3  # of a draft that costs nothing


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a target's text, as the draft sees it after the tokens before it.

    `rank` is that of the text's token among the draft's choices: 0 where the draft is right,
    then its runners-up. `probs` are the draft's probabilities of its first choice and of the
    runners-up. `guesses_bonus`: whether its guess of a bonus token is right.
    """

    rank: int
    probs: tuple[float, ...]
    guesses_bonus: bool

    def stored(self) -> list[float]:
        """The place as JSON, for a result's file."""
        return [self.rank, int(self.guesses_bonus), *(round(prob, 4) for prob in self.probs)]

    @classmethod
    def read(cls, stored: Sequence[float]) -> "Place":
        """The reverse of `stored`."""
        rank, guesses_bonus, *probs = stored
        return cls(int(rank), tuple(probs), bool(guesses_bonus))


def chosen_texts(acceptance: float, num_texts: int = 64, length: int = 64) -> list[list[Place]]:
    """The places of a draft of chosen acceptance, as in `draft_service/drafters/replay.py`."""
    probs = (acceptance, *((1 - acceptance) * chance for chance in RUNNER_UP_CHANCES))
    return [
        [Place(rank, probs, rank == 0) for rank in draw_ranks(range(length), acceptance, seed)]
        for seed in range(num_texts)
    ]


@dataclass(frozen=True)
class Times:
    """The times of parts of a step, in milliseconds.

    A verification of k draft tokens takes `verify + k * verify_per_token`, drafting them
    `draft + k * draft_step`, a pass of the draft over n predrafts
    `draft_step + (n - 1) * draft_per_predraft`; a step takes `overhead` in addition, and
    `draft_overhead` if it asks the draft.
    """

    target_alone: float
    verify: float
    verify_per_token: float
    draft: float
    draft_step: float
    draft_per_predraft: float
    overhead: float = 0.0
    draft_overhead: float = 0.0
    rtt_draft: float = 0.0
    rtt_target: float = 0.0

    def draft_pass(self, num_predrafts: int) -> float:
        return self.draft_step + max(0, num_predrafts - 1) * self.draft_per_predraft


@dataclass
class Replay:
    """The outcome of texts: counts, and the time from the first token to the last."""

    ms: float = 0.0
    num_tokens: int = 0
    num_steps: int = 0
    num_hits: int = 0
    num_accepted: int = 0

    @property
    def ms_per_token(self) -> float:
        return self.ms / self.num_tokens if self.num_tokens else 0.0

    @property
    def hit_rate(self) -> float:
        """Cache hits, of steps with draft tokens."""
        return self.num_hits / self.num_steps if self.num_steps else 0.0


def replay(
    texts: Sequence[Sequence[Place]],
    times: Times,
    k: int,
    num_predrafts: int = 0,
    min_confidence: float = DEFAULT_MIN_CONFIDENCE,
) -> Replay:
    """The loop over all texts with draft length k, sequential or with predrafts."""
    result = Replay()
    for text in texts:
        _replay_text(text, times, k, num_predrafts, min_confidence, result)
    return result


def _replay_text(
    text: Sequence[Place],
    times: Times,
    k: int,
    num_predrafts: int,
    min_confidence: float,
    result: Replay,
) -> None:
    pass_ms = max(times.draft_pass(num_predrafts), _SHORTEST_PASS_MS)
    position, num_predrafted = 1, 0  # the target's own first token comes with its prompt
    while position < len(text):
        room = len(text) - position - 1
        is_hit = min(num_predrafted, room) > 0
        length = min(k, room, num_predrafted) if is_hit else min(k, room)
        if length and not is_hit:
            length = _proposed_length(text[position : position + length], min_confidence)
            result.ms += _drafting_ms(times, length)
        verify_ms = times.verify + length * times.verify_per_token + times.rtt_target
        result.ms += verify_ms + times.overhead
        drafted = text[position : position + length]
        accepted = next((i for i, place in enumerate(drafted) if place.rank), length)
        num_predrafted = 0
        if num_predrafts and length and room > accepted + 1:
            # Of what was predrafted the draft must hear before it follows.
            passes = (verify_ms - (times.rtt_draft if is_hit else 0.0)) / pass_ms
            num_predrafted, awaited = _predrafted_soon(
                text[position:], length, accepted, num_predrafts, passes
            )
            result.ms += awaited * pass_ms
        result.num_steps += length > 0
        result.num_hits += is_hit
        result.num_accepted += accepted
        result.num_tokens += accepted + 1
        position += accepted + 1


def _proposed_length(ahead: Sequence[Place], min_confidence: float) -> int:
    """The tokens of a proposal, which ends where the draft is unsure of it."""
    chances = itertools.accumulate((place.probs[0] for place in ahead), operator.mul)
    unsure = (i for i, chance in enumerate(chances, 1) if chance < min_confidence)
    return next(unsure, len(ahead))


def _drafting_ms(times: Times, length: int) -> float:
    """The time that a step waits for draft tokens."""
    drafting = times.draft + length * times.draft_step
    return drafting + times.draft_overhead + times.rtt_draft


def _predrafted_soon(
    ahead: Sequence[Place], length: int, accepted: int, num_predrafts: int, passes: float
) -> tuple[int, float]:
    """Tokens predrafted for the result, and the part of a pass that the first one is late."""
    in_time = max(0, int(passes))
    found = predrafted_length(ahead, length, accepted, num_predrafts, in_time)
    # What is under way then is less than a pass from being there.
    under_way = (
        0 if found else predrafted_length(ahead, length, accepted, num_predrafts, in_time + 1)
    )
    return (1, in_time + 1 - max(0.0, passes)) if under_way else (found, 0.0)


def predrafted_length(
    ahead: Sequence[Place], length: int, accepted: int, num_predrafts: int, num_passes: int
) -> int:
    """The number of tokens that are predrafted for the result; 0 on a cache miss."""
    if accepted == length:
        # The first pass guesses the bonus token.
        return max(0, num_passes - 1) if ahead[length].guesses_bonus else 0
    probs = tuple(place.probs for place in ahead[:length])
    outcome = (0,) * accepted + (ahead[accepted].rank,)
    return num_passes if outcome in _predrafted_corrections(probs, num_predrafts - 1) else 0


@cache
def _predrafted_corrections(
    probs: tuple[tuple[float, ...], ...], count: int
) -> frozenset[tuple[int, ...]]:
    """The corrections that are predrafted for, as ranks; cached, since steps recur."""
    ranks = [[Choice(rank, prob) for rank, prob in enumerate(of_place)] for of_place in probs]
    corrections = likeliest_corrections([0] * len(probs), ranks, count)
    return frozenset(tuple(correction.token_ids) for correction in corrections)


def best_fan_out(
    texts: Sequence[Sequence[Place]],
    times: Times,
    k: int,
    num_predrafts: int,
    min_confidence: float = DEFAULT_MIN_CONFIDENCE,
) -> Replay:
    """The fastest replay with up to `num_predrafts`, as the draft service would choose."""
    fan_outs = range(min(1, num_predrafts), num_predrafts + 1)
    ways = [replay(texts, times, k, fan_out, min_confidence) for fan_out in fan_outs]
    return min(ways, key=lambda way: way.ms_per_token)


def best_speedup(
    texts: Sequence[Sequence[Place]],
    times: Times,
    num_predrafts: int,
    min_confidence: float = DEFAULT_MIN_CONFIDENCE,
    longest: int = 16,
) -> tuple[float, int]:
    """The speedup over the target alone at the best draft length; and that length.

    Without draft tokens the target runs ahead, so its round trip costs nothing.
    """
    alone = times.target_alone
    ways = {
        k: best_fan_out(texts, times, k, num_predrafts, min_confidence).ms_per_token
        for k in range(1, longest + 1)
    }
    best = min(ways, key=lambda k: ways[k])
    return (alone / ways[best], best) if ways[best] < alone else (1.0, 0)


def draft_twice_as_fast(times: Times) -> Times:
    return dataclasses.replace(
        times,
        draft=times.draft / 2,
        draft_step=times.draft_step / 2,
        draft_per_predraft=times.draft_per_predraft / 2,
    )


def draft_for_nothing(times: Times) -> Times:
    """The times of a draft that costs nothing, which bound all drafts of an acceptance."""
    return dataclasses.replace(
        times, draft=0.0, draft_step=0.0, draft_per_predraft=0.0, draft_overhead=0.0
    )


def flat_in_k(times: Times) -> Times:
    """Times in which verifications take as long with draft tokens as without, as on a GPU."""
    return dataclasses.replace(times, verify_per_token=0.0)


def what_if(times: Times) -> dict[str, Times]:
    """Other times of interest, by name."""
    change = dataclasses.replace
    return {
        "as measured": times,
        "verification flat in k": flat_in_k(times),
        "draft twice as fast": draft_twice_as_fast(times),
        "predrafts for nothing": change(times, draft_per_predraft=0.0),
        "no overhead": change(times, overhead=0.0, draft_overhead=0.0),
        "draft 20 ms away": change(times, rtt_draft=20.0),
        "draft 50 ms away": change(times, rtt_draft=50.0),
        "draft and target 20 ms away": change(times, rtt_draft=20.0, rtt_target=20.0),
    }
