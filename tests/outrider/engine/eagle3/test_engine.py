"""Feature drafts against the module of speculators, and in passes with others."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outrider.engine.chunk import Chunk, Features
from outrider.engine.cpu.packed_linear import fbgemm_is_available
from outrider.engine.eagle3.engine import Eagle3Engine
from outrider.engine.eagle3.network import Steps
from outrider.engine.options import EngineOptions
from outrider.protocol.hidden_states import HiddenStateSpec
from outrider.protocol.messages import GREEDY, SamplingParams
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice, rank_tokens
from tests.support.models.eagle3 import make_eagle3

_SEED = torch.Generator().manual_seed(5)
ROWS = torch.randn(12, 128, generator=_SEED)  # of two layers of 64
IDS = torch.randint(3, 250, (12,), generator=_SEED).tolist()

# Logits of the first five ids after token 9, and after tokens 10 and 11 with the draft's own
# hidden states: by `Eagle3DraftModel` of speculators 0.9.0 (transformers 5.19.0) on the same
# weights, in the unrolled steps of its training.
SPECULATORS = [
    (
        ("llama", ("fc_norm", "norm_output"), 1),
        [
            [3.6884, -0.6956, 1.4366, -1.2654, 1.5783],
            [-2.1813, 0.8538, -2.8137, 1.2744, 0.8677],
            [3.8986, -1.6747, -0.5845, 0.6917, 0.3029],
        ],
    ),
    (
        ("llama", ("norm_before_fc", "norm_before_residual"), 1),
        [
            [3.3602, 0.9675, 0.9498, -2.3361, 1.3333],
            [-1.5261, -1.4875, -1.8722, -1.0027, 1.9382],
            [3.8552, -1.6639, 0.0448, -0.5065, -0.9853],
        ],
    ),
    (
        ("qwen3", ("fc_norm",), 2),
        [
            [4.642, -1.6139, -0.5732, -4.0112, -0.1609],
            [4.4815, 0.2217, -0.1078, -3.4212, 1.1457],
            [2.9388, 1.2927, 1.3405, -2.8178, 1.3491],
        ],
    ),
]


def engine_of(folder: Path, dtype: str = "float32", slots: int = 3) -> Eagle3Engine:
    options = EngineOptions(
        str(folder), "cpu", dtype, slots=slots, max_context_length=128, batch_invariant=False
    )
    return Eagle3Engine(options)


def of_target(rows: Tensor) -> Features:
    return Features(rows, are_own=False)


def own(features: Features) -> Features:
    """The draft's own states behind a chunk with these."""
    return Features(features.outputs[-1], are_own=True)


def steps(engine: Eagle3Engine, length: int, slot: int = 1) -> Tensor:
    """Logits after the first `length` tokens and the target's states, and two after them."""
    features = of_target(ROWS[:length])
    logits = [*engine.forward([Chunk(slot, 0, IDS[:length], 1, features=features)])]
    for place in range(length, length + 2):
        features = own(features)
        logits += engine.forward([Chunk(slot, place, [IDS[place]], 1, features=features)])
    return torch.cat(logits)


@pytest.mark.parametrize(("made", "expected"), SPECULATORS)
def test_logits_are_those_of_speculators(
    made: tuple[str, tuple[str, ...], int],
    expected: list[list[float]],
    tmp_path: Path,
) -> None:
    kind, flags, num_layers = made
    engine = engine_of(make_eagle3(tmp_path, flags=flags, kind=kind, num_layers=num_layers))
    assert engine.reads_hidden_states == HiddenStateSpec((0, 1), 64, 512)
    found = steps(engine, 10)[:, :5]
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_eagle3(tmp_path_factory.mktemp("eagle3"), flags=("fc_norm", "norm_output"))


def test_sharing_a_pass_changes_nothing_but_rounding(draft: Path) -> None:
    """The target's states and the draft's own in one pass, wrong tokens rolled back."""
    engine = engine_of(draft)
    expected, other = steps(engine, 9, slot=0), steps(engine, 4, slot=0)
    engine.forward([Chunk(1, 0, IDS[3:9], 1, features=of_target(ROWS[3:9]))])
    first, second = of_target(ROWS[:9]), of_target(ROWS[:4])
    prefills = [
        Chunk(1, 0, IDS[:9], 1, features=first),
        Chunk(2, 0, IDS[:4], 1, features=second),
    ]
    found = [*engine.forward(prefills)]
    third = of_target(ROWS[:5])
    stepped = [
        Chunk(1, 9, [IDS[9]], 1, features=own(first)),
        Chunk(0, 0, IDS[:5], 0, features=third),
        Chunk(2, 4, [IDS[4]], 1, features=own(second)),
    ]
    found += engine.forward(stepped)
    assert not third.outputs
    tolerance = {"atol": 1e-4, "rtol": 1e-4}
    for logits, wanted in zip(
        found, [expected[0], other[0], expected[1], None, other[1]], strict=True
    ):
        if wanted is not None:
            torch.testing.assert_close(logits[0], wanted, **tolerance)


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(1.0, seed=3)])
def test_several_choices_are_those_of_single_steps(draft: Path, params: SamplingParams) -> None:
    engine = engine_of(draft)
    spec = SamplingSpec(params, 100, 3)
    features = Features(ROWS[:6], are_own=False, first_index=7)
    [chosen] = engine.choose([Chunk(0, 0, IDS[:6], 1, features=features)], [spec], 4)
    assert len(chosen) == len(features.outputs) == 4
    token_ids, states, place = IDS[:6], of_target(ROWS[:6]), 0
    for choices in chosen:
        assert isinstance(choices, list)
        [logits] = engine.forward([Chunk(1, place, token_ids, 1, features=states)])
        place += len(token_ids)
        expected = rank_tokens(logits, engine.logit_token_ids, params, place + 7, 3)
        assert [c.token_id for c in choices] == [c.token_id for c in expected]
        token_ids, states = [choices[0].token_id], own(states)


def test_a_job_says_what_is_read_next_and_when_to_stop(draft: Path) -> None:
    engine = engine_of(draft)
    spec = SamplingSpec(GREEDY, 100)
    expected = [int(engine.logit_token_ids[row.argmax()]) for row in steps(engine, 6)]
    following: list[int | None] = [IDS[6], IDS[7], None]
    seen: list[Choice] = []

    def follow(choices: list[Choice]) -> int | None:
        seen.extend(choices)
        return following[len(seen) - 1]

    features = Features(ROWS[:6], are_own=False, follow=follow)
    alone = Chunk(0, 0, IDS[:6], 1, features=of_target(ROWS[:6]))
    chunks = [Chunk(1, 0, IDS[:6], 1, features=features), alone]
    chosen, others = engine.choose(chunks, [spec, spec], 8)
    assert [choices[0].token_id for choices in chosen] == expected == [c.token_id for c in seen]
    assert len(others) == 8  # not ended by the other


def test_a_draft_vocabulary_may_have_any_order(draft: Path, tmp_path: Path) -> None:
    folder = make_eagle3(tmp_path, flags=("fc_norm", "norm_output"))
    weights = load_file(folder / "model.safetensors")
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    rows = torch.arange(100)
    weights["d2t"] = (weights["d2t"] + rows)[order] - rows
    weights["lm_head.weight"] = weights["lm_head.weight"][order].contiguous()
    save_file(weights, folder / "model.safetensors")
    shuffled, plain = engine_of(folder), engine_of(draft)
    assert torch.equal(shuffled.logit_token_ids, plain.logit_token_ids)
    torch.testing.assert_close(steps(shuffled, 9), steps(plain, 9), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_fewer_bits_stay_near(dtype: str, draft: Path) -> None:
    if dtype == "int8" and not fbgemm_is_available():
        pytest.skip("no FBGEMM for this CPU")
    expected, found = steps(engine_of(draft), 9), steps(engine_of(draft, dtype), 9)
    assert (found.float() - expected).abs().mean() < 0.1 * expected.std()


def test_compiled_steps_compute_what_they_do_in_python(draft: Path) -> None:
    compiled, plain = engine_of(draft), engine_of(draft)
    assert isinstance(compiled.network._run, torch.jit.ScriptModule)
    plain.network._run = plain.network.steps
    assert isinstance(plain.network._run, Steps)
    torch.testing.assert_close(steps(compiled, 9), steps(plain, 9), atol=1e-5, rtol=1e-5)


def test_a_window_hides_what_is_before_it(tmp_path: Path) -> None:
    engine = engine_of(make_eagle3(tmp_path, window=4))
    assert engine.reads_hidden_states is not None
    assert engine.reads_hidden_states.window == 4

    def last(rows: Sequence[int]) -> Tensor:
        ids, states = [IDS[i] for i in rows], of_target(ROWS[list(rows)])
        return engine.forward([Chunk(0, 0, ids, 1, features=states)])[0]

    expected = last([4, 5, 6, 7, 8])
    torch.testing.assert_close(last([0, 5, 6, 7, 8]), expected, atol=1e-5, rtol=1e-5)
    assert (last([4, 0, 6, 7, 8]) - expected).abs().max() > 0.01


def test_states_that_are_no_numbers_fail_their_chunk_and_leave_no_trace(draft: Path) -> None:
    engine = engine_of(draft)
    expected = steps(engine, 9)
    spec = SamplingSpec(GREEDY, 100)
    chunks = [
        Chunk(1, 0, IDS[:4], 1, features=of_target(ROWS[:4] * torch.nan)),
        Chunk(0, 0, IDS[:4], 1, features=of_target(ROWS[:4])),
    ]
    results = engine.choose(chunks, [spec, spec], 2)
    assert engine.clear_unsound(chunks, results) == [False, True]
    torch.testing.assert_close(steps(engine, 9), expected, atol=1e-5, rtol=1e-5)


def test_on_a_gpu_it_computes_the_same(draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = steps(engine_of(draft), 9)
    monkeypatch.setattr("outrider.engine.engine.is_gpu", lambda device: True)
    torch.testing.assert_close(steps(engine_of(draft), 9), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not fbgemm_is_available(), reason="no FBGEMM for this CPU")
def test_a_huge_state_leaves_the_others_their_bits_in_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some models have them, in a draft that does not norm them."""
    rows = ROWS.clone()
    rows[:, 3] = 1000.0
    folder = make_eagle3(tmp_path, flags=())
    weights = load_file(folder / "model.safetensors")
    weights["fc.weight"][:, 3] *= 1e-3
    save_file(weights, folder / "model.safetensors")
    monkeypatch.setitem(globals(), "ROWS", rows)
    expected, found = steps(engine_of(folder), 9), steps(engine_of(folder, "int8"), 9)
    assert (found - expected).abs().mean() < 0.1 * expected.std()
