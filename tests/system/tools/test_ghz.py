"""The real ghz against the services: it finds methods by itself, and the files that we ship run."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from benchmarks.ghz_files import loads
from benchmarks.support.ghz import read_report, run
from tests.support.system import System, running_system

GETTING_STARTED = Path(__file__).parents[3] / "docs/getting-started.md"

pytestmark = [
    pytest.mark.process,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(shutil.which("ghz") is None, reason="ghz is not installed"),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def system(tiny_models: Callable[..., Path]) -> AsyncIterator[System]:
    # The sessions of the files have token ids up to 4000.
    target, draft = (tiny_models("llama", seed=seed, vocab_size=4096) for seed in (0, 1))
    async with running_system(target, draft) as system:
        yield system


@pytest.mark.parametrize("name", ["smoke", "stream", "propose", "verify"])
async def test_a_file_runs(name: str, system: System) -> None:
    addresses = {"propose": system.draft_address, "verify": system.target_address}
    report = await asyncio.to_thread(
        run, loads()[name], addresses.get(name, system.address), total=4
    )
    assert report.statuses == {"OK": 4}, {call.error for call in report.calls}
    assert 0 < min(report.seconds_of("OK")) <= report.seconds


async def test_steps_of_clients_run_to_their_end(system: System) -> None:
    """ghz panics where the time is over before the steps are."""
    system.servicer.admission.max_queue_seconds = 300  # as its tags say
    load = loads()["closed-loop-steps"]
    short = {"duration": "1300ms", "concurrency-step-duration": "100ms", "concurrency-end": 15}
    report = await asyncio.to_thread(run, load, system.address, **short)
    assert report.statuses.keys() == {"OK"}


async def test_the_command_in_the_docs_runs(system: System) -> None:
    lines = GETTING_STARTED.read_text().splitlines()
    [line] = [line.strip() for line in lines if line.startswith("    ghz ")]
    *command, address = shlex.split(line)
    assert address == "127.0.0.1:50051"
    finished = await asyncio.to_thread(
        subprocess.run,
        [*command, "--format", "json", system.address],
        capture_output=True,
        text=True,
        check=True,
    )
    assert read_report(finished.stdout).statuses == {"OK": 4}
