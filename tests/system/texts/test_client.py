"""The client library and the commands that use it, on running services."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from outrider import AsyncClient, Client, OutriderError
from outrider.cli.main import cli
from outrider.errors import InvalidRequest, ServiceUnavailable
from tests.support.system import System, running_system
from tests.system.texts.test_protocol import all_slots_free

TEXT = "the cat sat on the mat"


@pytest.fixture
async def system(tiny_models: Callable[..., Path]) -> AsyncIterator[System]:
    async with running_system(tiny_models("llama"), tiny_models("llama")) as system:
        yield system


async def test_both_clients_get_the_same(system: System) -> None:
    settings = {
        "max_new_tokens": 20,
        "temperature": 1.0,
        "seed": 3,
        "num_speculative_tokens": 4,
        "ignore_eos": True,
    }

    def synchronously() -> None:
        with Client(system.address) as client:
            assert client.generate(TEXT, **settings).token_ids == expected.token_ids
            stream = client.stream(TEXT, **settings)
            assert "".join(piece.text for piece in stream) == expected.text
            assert stream.result.token_ids == expected.token_ids
            assert client.info().target.dtype == "float32"

    async with AsyncClient(system.address) as client:
        expected = await client.generate(TEXT, **settings)
        stream = client.stream(TEXT, **settings)
        pieces = [piece async for piece in stream]
        assert "".join(piece.text for piece in pieces) == expected.text
        assert stream.result.token_ids == expected.token_ids
        assert {piece.source for piece in pieces} == {"draft", "target"}
        assert (await client.info()).draft is not None
    await asyncio.to_thread(synchronously)


async def test_errors_arrive_as_what_they_were(system: System) -> None:
    async with AsyncClient(system.address) as client:
        with pytest.raises(InvalidRequest, match="temperature"):
            await client.generate(TEXT, temperature=-1.0)
        with pytest.raises(InvalidRequest, match="prompt"):
            async for _ in client.stream(""):
                pass

    def synchronously() -> None:
        with Client(system.address) as client:
            with pytest.raises(InvalidRequest, match="top_p"):
                client.generate(TEXT, top_p=7.0)
            with pytest.raises(InvalidRequest, match="min_p"):
                list(client.stream(TEXT, min_p=7.0))

    await asyncio.to_thread(synchronously)


async def test_nobody_there_is_unavailable() -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(ServiceUnavailable):
            await client.generate(TEXT)


async def test_a_stream_that_is_closed_frees_both_slots(system: System) -> None:
    def synchronously() -> None:
        with Client(system.address) as client:
            stream = client.stream(TEXT, max_new_tokens=400, ignore_eos=True)
            next(stream)
            with pytest.raises(RuntimeError):
                _ = stream.result
            stream.close()
            with pytest.raises(OutriderError):
                list(stream)

    await asyncio.to_thread(synchronously)
    assert await all_slots_free(system)


async def outrider(system: System, *arguments: str) -> Result:
    command = [arguments[0], "--address", system.address, *arguments[1:]]
    return await asyncio.to_thread(CliRunner().invoke, cli, command)


async def test_generate_prints_text_and_report(system: System) -> None:
    result = await outrider(system, "generate", TEXT, "--max-new-tokens", "9", "--compare")
    assert result.exit_code == 0, result.output
    for part in ("critical path", "verify_compute", "new tokens", "same text: yes", "speedup"):
        assert part in result.output
    assert "\x1b[" not in result.output  # no colours without a terminal


async def test_generate_json_is_one_object_with_these_keys(system: System) -> None:
    flags = ["--json", "--max-new-tokens", "9", "--ignore-eos", "--stop-strings", "\n\n\n"]
    result = await outrider(system, "generate", TEXT, *flags)
    document = json.loads(result.stdout)
    assert list(document) == [
        "prompt",
        "text",
        "token_ids",
        "finish_reason",
        "seed",
        "usage",
        "speculation",
        "latency",
        "num_target_threads",
        "draft_failure",
        "estimates",
        "pieces",
        "trace",
    ]
    assert document["finish_reason"] == "length"
    assert document["usage"]["num_output_tokens"] == len(document["token_ids"]) == 9
    assert set(document["speculation"]) == {
        "num_steps",
        "num_cache_hits",
        "num_cache_hit_accepted_tokens",
        "num_predrafted_tokens",
        "num_lookup_steps",
        "num_lookup_draft_tokens",
        "num_lookup_accepted_tokens",
        "num_pipelined_steps",
        "num_stale_steps",
        "num_cache_misses",
        "num_idle_steps",
        "num_active_steps",
        "num_draft_tokens",
        "num_accepted_tokens",
        "draft_acceptance_rate",
        "mean_acceptance_length",
        "acceptance_histogram",
    }
    latency = document["latency"]
    assert list(latency) == ["wall_ns", "ttft_ns", "tpot_ns", "critical_path", "hidden"]
    assert sum(latency["critical_path"].values()) == pytest.approx(latency["wall_ns"], rel=0.01)


async def test_text_is_a_user_message_unless_raw(system: System) -> None:
    flags = ["--json", "--max-new-tokens", "4", "--no-speculation"]
    chat = json.loads((await outrider(system, "generate", TEXT, *flags)).stdout)
    raw = json.loads((await outrider(system, "generate", TEXT, *flags, "--raw")).stdout)
    assert chat["usage"]["num_prompt_tokens"] > raw["usage"]["num_prompt_tokens"]
    assert raw["speculation"]["num_steps"] == 0


async def test_info_names_the_models(system: System) -> None:
    assert "float32" in (await outrider(system, "info")).output
    document = json.loads((await outrider(system, "info", "--json")).stdout)
    assert document["target"]["num_slots"] == 4
