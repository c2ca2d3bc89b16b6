"""Everything on a device that is not the CPU, as far as that can be seen without one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from draft_service.drafters.model import ModelDrafter
from outrider.distill.shared.settings import RECORD
from outrider.engine import engine as model
from outrider.engine.chunk import Chunk
from outrider.engine.cuda import static_pass
from outrider.engine.cuda.gpu_network import GpuNetwork
from outrider.protocol.messages import GREEDY, SamplingParams
from outrider.sampling.sampler import choose_tokens, rank_tokens
from target_service.verifier import Verifier
from tests.outrider.engine.cuda.test_static_passes import IDS, check_same, engine_of
from tests.support import second_device
from tests.support.models.tiny_models import SUPPORTED_FAMILIES
from tests.support.second_device import DEVICE, Recordings, Waits
from tests.support.system import running_system
from tests.system.tools.test_distill import distill, flags

pytestmark = pytest.mark.slow

if not second_device.IS_AVAILABLE:
    pytest.skip("this torch has no devices in Python", allow_module_level=True)

SAMPLED = SamplingParams(temperature=1.0, seed=3)
FILTERED = SamplingParams(temperature=0.7, top_k=40, top_p=0.9, min_p=0.01, seed=5)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    second_device.register()
    monkeypatch.setattr(torch, "tensor", second_device.tensor)
    monkeypatch.setattr(model, "is_gpu", lambda device: device.type == DEVICE)
    monkeypatch.setattr(static_pass, "SHORTEST_LENGTH", 32)


class Recording:
    """What is run again instead of replayed, if it is fit for a graph."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self.replay = run
        run()
        with Recordings.recording():
            run()


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
def test_passes_do_not_wait_for_the_device(family: str, tiny_models: Callable[..., Path]) -> None:
    here, there = engine_of(tiny_models(family)), engine_of(tiny_models(family), DEVICE)
    prompts = [Chunk(0, 0, IDS[:30], 1), Chunk(3, 0, IDS[40:60], 1)]
    step = [Chunk(0, 30, IDS[30:31], 1)]
    before = Waits.count
    found = [*there.forward(prompts), *there.forward(step)]
    assert Waits.count == before
    expected = [*here.forward(prompts), *here.forward(step)]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other.cpu(), one, atol=1e-4, rtol=1e-4)
    there.use_graphs(Recording)
    before = Waits.count
    there.forward(step)
    assert Waits.count == before
    check_same(here, there)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_layers_for_gpus_do_not_wait_either(family: str, tiny_models: Callable[..., Path]) -> None:
    here, recorded = engine_of(tiny_models(family)), engine_of(tiny_models(family), DEVICE)
    assert isinstance(recorded.network, GpuNetwork)
    recorded.use_graphs(Recording)
    before = Waits.count
    recorded.forward([Chunk(0, 0, IDS[:30], 1)])
    recorded.forward([Chunk(0, 30, IDS[30:31], 1)])
    assert Waits.count == before
    check_same(here, recorded)


async def test_a_proposal_and_a_result_wait_once(tiny_models: Callable[..., Path]) -> None:
    engine = engine_of(tiny_models("llama"), DEVICE)
    engine.use_graphs(Recording)
    engine.use_choices()
    for service, ask in (
        (ModelDrafter(engine, 1), lambda session, how: session.propose(0, IDS[:9], 5, how, 250)),
        (Verifier(engine), lambda session, how: session.verify(0, IDS[:4], IDS[4:9], how)),
    ):
        session = service.open_session()
        for params in (GREEDY, SAMPLED, FILTERED):
            await ask(session, params)  # the first one is recorded
            before = Waits.count
            await ask(session, params)
            assert Waits.count == before + 1
        session.close()
        service.close()


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, FILTERED])
def test_the_same_tokens_are_chosen(params: SamplingParams) -> None:
    logits = torch.randn(3, 900, generator=torch.Generator().manual_seed(1))
    token_ids = torch.arange(900)
    there, ids_there = logits.to(DEVICE), token_ids.to(DEVICE)
    chosen = choose_tokens(logits, token_ids, params, 7)
    assert choose_tokens(there, ids_there, params, 7) == chosen
    ranked = rank_tokens(logits[:1], token_ids, params, 7, 4)
    assert rank_tokens(there[:1], ids_there, params, 7, 4) == ranked


async def test_the_pair_writes_the_same_texts(tiny_models: Callable[..., Path]) -> None:
    requests: list[dict[str, Any]] = [
        {"num_speculative_tokens": k, **sampling}
        for sampling in ({}, {"temperature": 0.9, "top_p": 0.95, "seed": 5})
        for k in (0, 3)
    ]
    texts = []
    for device in ("cpu", DEVICE):
        async with running_system(
            tiny_models("llama"), tiny_models("gpt2", seed=7), device=device
        ) as system:
            for request in requests:
                response = await system.generate(
                    "the cat sat on the mat", max_new_tokens=7, ignore_eos=True, **request
                )
                texts.append(list(response.token_ids))
        assert response.speculation.num_draft_tokens > 0
    greedy, _, sampled, _ = texts[:4]
    assert texts == [greedy, greedy, sampled, sampled] * 2


def test_a_draft_is_trained(tmp_path: Path, tiny_models: Callable[..., Path]) -> None:
    prompts = tmp_path / "questions.txt"
    prompts.write_text("".join(f"what does the fox say to dog {i}?\n" for i in range(6)))
    target, here, there = tiny_models("llama"), tmp_path / "here", tmp_path / "there"
    changes = {"prompts": str(prompts), "steps": "2", "refit_texts": "2"}
    distill(target, here, "--int8", **changes)
    # The device must be known before a process trains anything.
    command = [sys.executable, "-m", "tests.support.second_device", "--int8"]
    command += flags(target, there, device=DEVICE, **changes)
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    losses = [json.loads((out / RECORD).read_text())["losses"] for out in (here, there)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_nothing_is_fetched_or_brought_in_a_recording() -> None:
    there = torch.zeros(3, device=DEVICE)
    for forbidden in (
        lambda: there.sum().item(),
        lambda: there.cpu(),
        lambda: torch.tensor([1.0]).to(DEVICE),
        lambda: there.copy_(torch.ones(3)),
        lambda: there[there > 0],
    ):
        forbidden()
        with Recordings.recording(), pytest.raises(RuntimeError, match="capturing"):
            forbidden()
    with Recordings.recording():
        assert (there * 2 + there.clone()).device.type == DEVICE


def test_tensors_of_two_devices_do_not_meet() -> None:
    there = torch.zeros(3, device=DEVICE)
    assert (there + 1).tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="two devices"):
        there + torch.zeros(3)
