"""What the draft would have said, and what rejection sampling would have made of it."""

from __future__ import annotations

import random

import pytest
import torch

from outrider.protocol.messages import GREEDY, SamplingParams
from outrider_bench.models.loop_model import Place
from outrider_bench.models.trace import WIDTH, places, rejection, runner_up_coverage

SAMPLED = SamplingParams(temperature=1.0, seed=5)
IDS = torch.arange(20)


def test_ranks_are_those_of_the_texts_tokens() -> None:
    logits = torch.zeros(3, 20)
    logits[:, :4] = torch.tensor([40.0, 30.0, 20.0, 10.0])
    logits[:, 19] = -50
    found = places(logits, IDS, [8, 8, 0, 2, 19], GREEDY)
    assert [place.rank for place in found] == [0, 2, WIDTH]
    assert [place.guesses_bonus for place in found] == [True, False, False]
    assert found[0].probs[0] > 0.9


def test_sampled_ranks_follow_the_noise_of_the_place() -> None:
    from outrider.sampling.sampler import choose_tokens

    logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    chosen = choose_tokens(logits, IDS, SAMPLED, 2)
    assert [p.rank for p in places(logits, IDS, [0, 0, *chosen], SAMPLED)] == [0] * 4


def test_coverage_counts_wrong_places_only() -> None:
    ranks = [0, 1, 2, WIDTH, 0, 8]
    coverage = runner_up_coverage([[Place(rank, (), False) for rank in ranks]])
    assert (coverage[1], coverage[2], coverage[8], coverage[16]) == (0.25, 0.5, 0.75, 0.75)


def test_rejection_is_what_simulated_rejections_give() -> None:
    """Draft tokens are drawn and rejected, corrections drawn and looked up, many times."""
    generator = torch.Generator().manual_seed(1)
    target, draft = torch.randn(2, 1, 20, generator=generator) * 1.5
    ids = torch.arange(19)  # the draft has a part of the vocabulary
    found = rejection(target, draft[:, :19], ids, SAMPLED)
    p, q = target[0].double().softmax(-1), torch.zeros(20, dtype=torch.float64)
    q[:19] = draft[0, :19].double().softmax(-1)
    count = 40_000
    drafted = torch.multinomial(q, count, replacement=True, generator=generator)
    accepted = torch.rand(count, generator=generator) < (p / q)[drafted]
    assert found.acceptance[0] == pytest.approx(accepted.double().mean().item(), abs=0.01)
    rejected = drafted[~accepted]
    corrections = torch.multinomial(
        (p - q).clamp_min(0), len(rejected), replacement=True, generator=generator
    )
    order = q.argsort(descending=True).tolist()
    ranks = torch.tensor(
        [
            [token for token in order if token != d].index(c) + 1
            for d, c in zip(rejected.tolist(), corrections.tolist(), strict=True)
        ]
    )
    for r in (1, 2, 4, 8):
        share = (ranks <= r).double().mean().item()
        assert found.coverage[0][r - 1] == pytest.approx(share, abs=0.015)
    assert found.bonus[0] == pytest.approx(p[q.argmax()].item())


def test_drawn_places_have_the_rates() -> None:
    generator = torch.Generator().manual_seed(2)
    target, draft = torch.randn(2, 1, 20, generator=generator)
    found = rejection(target, draft, IDS, SAMPLED)
    source = random.Random(3)
    drawn = [found.places(source)[0] for _ in range(5000)]
    rate = sum(place.rank == 0 for place in drawn) / len(drawn)
    assert rate == pytest.approx(found.acceptance[0], abs=0.03)
    assert runner_up_coverage([drawn])[2] == pytest.approx(found.coverage[0][1], abs=0.05)
