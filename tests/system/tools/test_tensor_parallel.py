"""A target that two processes hold together, under torchrun."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest

from orchestrator.servicer import GenerationServicer
from orchestrator.sessions.pair import Pair
from outrider.cli.processes import ServiceProcess
from outrider.v1 import generation_pb2, generation_pb2_grpc
from tests.support.system import running_draft, running_system, serving

pytestmark = pytest.mark.process

TORCHRUN = ("--standalone", "--nproc-per-node", "2", "-m", "target_service")
SETTINGS = (
    *("--tensor-parallel", "2", "--device", "cpu", "--dtype", "float32"),
    *("--threads", "1", "--slots", "4", "--max-context-length", "128", "--port", "0"),
)


@asynccontextmanager
async def generation_with(
    target_address: str, draft: Path
) -> AsyncIterator[generation_pb2_grpc.GenerationServiceAsyncStub]:
    """The stub of an orchestrator over this target and a draft in this process."""
    async with running_draft(draft, max_context_length=128) as (draft_address, _):
        servicer = GenerationServicer()
        servicer.serve_pair(await Pair.connect(target_address, draft_address))
        async with (
            serving(
                lambda server: generation_pb2_grpc.add_GenerationServiceServicer_to_server(
                    servicer, server
                )
            ) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            yield generation_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[misc]
        await servicer.pair.close()


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
async def test_two_ranks_say_what_one_process_says_until_one_is_lost(
    family: str, tiny_models: Callable[..., Path]
) -> None:
    target = tiny_models(family)
    requests = [
        generation_pb2.GenerateRequest(
            prompt="the cat sat", max_new_tokens=24, num_speculative_tokens=k, ignore_eos=True
        )
        for k in (0, 4)
    ]
    async with running_system(target, target, max_context_length=128) as system:
        expected = await system.generation.Generate(requests[0])
    arguments = [*TORCHRUN, *SETTINGS, "--model", str(target)]
    with ServiceProcess("torch.distributed.run", arguments) as process:
        address = process.wait_until_ready()
        async with generation_with(address, target) as generation:
            answers = [await generation.Generate(request) for request in requests]
        ranks = psutil.Process(process.pid).children()
        assert len(ranks) == 2
        ranks[1].kill()
        assert "rank" in process.failure().message
        assert not any(rank.is_running() for rank in ranks)
    assert [list(answer.token_ids) for answer in answers] == [list(expected.token_ids)] * 2
    assert answers[1].speculation.num_accepted_tokens > 10
