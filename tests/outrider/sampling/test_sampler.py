from __future__ import annotations

import math

import pytest
import torch

from outrider.protocol.messages import SamplingParams
from outrider.sampling import sampler as sampling
from outrider.sampling.sampler import filter_logits, gumbel_noise


def random_logits(num_tokens: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_tokens, vocab_size, generator=torch.Generator().manual_seed(seed)) * 3


def choose_tokens(logits: torch.Tensor, params: SamplingParams, first_index: int) -> list[int]:
    """From a whole vocabulary."""
    return sampling.choose_tokens(logits, torch.arange(logits.shape[-1]), params, first_index)


def kept(logits: torch.Tensor) -> list[int]:
    return torch.isfinite(logits[0]).nonzero().flatten().tolist()


@pytest.mark.parametrize("num_ids", [1, 100, 256, 1000, 1024])
def test_greedy_takes_the_first_of_the_largest(num_ids: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, num_ids // 4 + 1, (20, num_ids), generator=generator).float()
    chosen = choose_tokens(logits, SamplingParams(), 0)
    assert chosen == [row.index(max(row)) for row in logits.tolist()]


def test_a_row_is_chosen_by_its_index_not_by_the_shape_of_the_pass() -> None:
    logits = random_logits(5, 300)
    params = SamplingParams(temperature=1.0, seed=11)
    together = choose_tokens(logits, params, 20)
    one_by_one = [choose_tokens(logits[i : i + 1], params, 20 + i)[0] for i in range(5)]
    assert together == one_by_one


def test_a_part_of_the_vocabulary_is_chosen_from_as_if_the_rest_were_impossible() -> None:
    logits = random_logits(6, 300)
    part = torch.tensor([3, 50, 51, 200, 299])
    whole = torch.full_like(logits, -math.inf)
    whole[:, part] = logits[:, part]
    for params in (SamplingParams(), SamplingParams(temperature=1.0, top_p=0.9, seed=8)):
        assert sampling.choose_tokens(logits[:, part], part, params, 5) == choose_tokens(
            whole, params, 5
        )


def test_noise_depends_on_seed_index_and_id_alone() -> None:
    ids = torch.arange(1000)
    noise = gumbel_noise(3, 5, ids)
    assert torch.equal(noise[200:300], gumbel_noise(3, 5, ids[200:300]))
    assert not torch.equal(noise, gumbel_noise(4, 5, ids))
    assert not torch.equal(noise, gumbel_noise(3, 6, ids))


def test_noise_keeps_its_values() -> None:
    """Both hosts, every version: a change here changes everybody's seeded texts."""
    noise = gumbel_noise(2**64 - 1, 12, torch.tensor([0, 1, 49151]))
    assert noise.tolist() == pytest.approx(KNOWN_NOISE, rel=1e-12)


def reference_noise(seed: int, index: int, token_id: int) -> float:
    """SplitMix64 in Python's own integers."""
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def finalize(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    key = finalize((finalize((seed + golden) & mask) + index * golden + golden) & mask)
    bits = finalize((token_id * golden + key) & mask)
    return -math.log(-math.log(((bits >> 11) + 0.5) * 2.0**-53))


KNOWN_NOISE = [reference_noise(2**64 - 1, 12, token_id) for token_id in (0, 1, 49151)]


def test_noise_is_standard_gumbel() -> None:
    noise = torch.cat([gumbel_noise(1, index, torch.arange(20_000)) for index in range(10)])
    quantiles = torch.tensor([0.01, 0.1, 0.5, 0.9, 0.99, 0.999], dtype=torch.float64)
    share = [(noise <= -math.log(-math.log(q))).double().mean().item() for q in quantiles]
    assert share == pytest.approx(quantiles.tolist(), abs=0.004)


def test_tokens_that_only_their_noise_lifts_are_found() -> None:
    """Only those that can be among the best get noise; the rest of the text knows of none."""
    ids, width = torch.arange(3000), 5
    num_lifted = 0
    for index in range(200):
        logits = random_logits(1, len(ids), seed=index) / (1 + index % 3)
        for temperature in (0.5, 1.0, 4.0):
            params = SamplingParams(temperature, seed=index)
            scores = logits[0].double() / temperature + gumbel_noise(index, 7, ids)
            best = scores.topk(width).indices.tolist()
            ranked = sampling.rank_tokens(logits, ids, params, 7, width)
            assert [choice.token_id for choice in ranked] == best
            assert choose_tokens(logits, params, 7) == best[:1]
            num_lifted += best[0] not in logits[0].topk(sampling._NUM_LIKELY).indices
    assert num_lifted > 50


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=5),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.1),
    ],
)
def test_sampling_follows_the_filtered_distribution(params: SamplingParams) -> None:
    logits = random_logits(1, 12, seed=4) / 2
    expected = filter_logits(logits.double() / params.temperature, params).softmax(-1)[0]
    num_draws = 4000
    draws = choose_tokens(
        logits.expand(num_draws, -1), SamplingParams(**{**as_dict(params), "seed": 99}), 0
    )
    counts = torch.bincount(torch.tensor(draws), minlength=12).double()
    assert counts[expected == 0].sum() == 0
    live = expected > 0
    chi_squared = ((counts - num_draws * expected) ** 2 / (num_draws * expected))[live].sum()
    assert chi_squared < 35  # 11 degrees of freedom: p < 0.0003


def as_dict(params: SamplingParams) -> dict[str, float]:
    return {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")}


def test_top_k_keeps_the_k_largest() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0, 4.0]])
    assert kept(filter_logits(logits, SamplingParams(1.0, top_k=2))) == [1, 3]
    assert kept(filter_logits(logits, SamplingParams(1.0, top_k=9))) == [0, 1, 2, 3]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert kept(filter_logits(logits, SamplingParams(1.0, top_p=0.49))) == [0]
    assert kept(filter_logits(logits, SamplingParams(1.0, top_p=0.51))) == [0, 1]
    assert kept(filter_logits(logits, SamplingParams(1.0, top_p=0.99))) == [0, 1, 2, 3]


def test_a_nucleus_wider_than_the_short_cut_is_found() -> None:
    logits = torch.zeros(1, 5000)
    logits[0, 17] = 1.0
    assert len(kept(filter_logits(logits, SamplingParams(1.0, top_p=0.9)))) == 5000  # all tie
    logits = torch.linspace(0, 1, 5000)[None]
    num_kept = len(kept(filter_logits(logits, SamplingParams(1.0, top_p=0.5))))
    probs = logits.softmax(-1)[0].flip(0)
    assert probs[:num_kept].sum() >= 0.5 > probs[: num_kept - 1].sum()


def test_min_p_drops_what_is_less_likely_than_its_share_of_the_best() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.04, 0.16]]).log()
    assert kept(filter_logits(logits, SamplingParams(1.0, min_p=0.3))) == [0, 1, 3]
