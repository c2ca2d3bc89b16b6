"""`outrider up` and its three real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from outrider import Client

pytestmark = pytest.mark.process

# Heeds SIGINT, as in a terminal: pytest's workers ignore it, and who they start inherits that.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from outrider.cli.main import main
main()
"""
OUTRIDER = [sys.executable, "-c", PROGRAM]
PORTS = ["--port", "0", "--draft-port", "0", "--target-port", "0"]


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@contextmanager
def up(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `outrider up` and its public address."""
    command = [*OUTRIDER, "up", *PORTS, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        kind, _, address = process.stdout.readline().partition(" ")
        assert kind == "ready"
        yield process, address.strip()
    finally:
        process.terminate()
        process.wait(30)


def finds(address: str, symbol: str) -> bool:
    """Whether a server knows this symbol by reflection."""
    question = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
    with grpc.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        [answer] = stub.ServerReflectionInfo(iter([question]))
    return bool(answer.HasField("file_descriptor_response"))


def test_up_serves_and_ends_all_three(tiny_models: Callable[..., Path]) -> None:
    target, draft = str(tiny_models("gpt2")), str(tiny_models("gpt2", seed=3))
    one_thread = ("--target-threads", "1", "--draft-threads", "1")
    models = ("--target", target, "--draft", draft, "--dtype", "float32", *one_thread)
    with up(*models) as (process, address):
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(3)]
        assert told[0] == f"target: {target} float32 (1 thread)"
        assert told[1] == f"draft: {draft} float32 (1 thread)"
        assert told[2] == f'next: outrider generate --address {address} "What is a heron?"'
        with Client(address) as client:
            text = client.generate("the cat", max_new_tokens=12, ignore_eos=True)
            alone = client.generate(
                "the cat", max_new_tokens=12, ignore_eos=True, num_speculative_tokens=0
            )
        assert text.token_ids == alone.token_ids
        assert finds(address, "outrider.v1.GenerationService.Generate")
        services = children(process.pid)
        assert len(services) == 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in services)


def test_up_goes_on_without_the_draft_and_ends_without_the_target(
    tiny_models: Callable[..., Path],
) -> None:
    target, draft = str(tiny_models("gpt2")), str(tiny_models("gpt2", seed=3))
    with up("--target", target, "--draft", draft) as (process, address), Client(address) as client:
        assert process.stderr is not None
        pids = {
            name[1]: pid
            for pid in children(process.pid)
            if (name := re.search(r"(\w+)_service", Path(f"/proc/{pid}/cmdline").read_text()))
        }
        os.kill(pids["draft"], signal.SIGKILL)
        told = next(line for line in process.stderr if not line.startswith(("loading", "starting")))
        assert told == "going on with the target alone: draft_service was killed by SIGKILL\n"
        assert client.generate("the cat", max_new_tokens=5, ignore_eos=True).token_ids
        os.kill(pids["target"], signal.SIGKILL)
        assert process.stderr.readline() == "error: target_service was killed by SIGKILL\n"
        assert process.wait(30) == 1
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def test_up_without_a_draft_ends_by_an_interrupt(tiny_models: Callable[..., Path]) -> None:
    """Another target than the embedded one has no draft unless one is named."""
    with up("--target", str(tiny_models("gpt2"))) as (process, address):
        services = children(process.pid)
        assert len(services) == 2
        with Client(address) as client:
            assert client.info().draft is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in services)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*OUTRIDER, *arguments], capture_output=True, text=True, timeout=120)


def test_generate_without_address_leaves_nothing_behind(tiny_models: Callable[..., Path]) -> None:
    target = str(tiny_models("gpt2"))
    finished = run("generate", "the cat", "--json", "--max-new-tokens", "5", "--target", target)
    assert finished.returncode == 0, finished.stderr
    assert f"loading target: {target}: weights" in finished.stderr
    assert json.loads(finished.stdout)["usage"]["num_output_tokens"] <= 5


def test_a_busy_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        finished = run("orchestrator", "--draft", "none", "--port", port)
    assert finished.returncode == 1
    assert f"error: cannot listen on 127.0.0.1:{port}: Address already in use" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("flag", ["--port", "--draft-port", "--target-port"])
def test_up_notices_a_busy_port_before_it_loads_models(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        finished = run("up", *PORTS, flag, port)
    assert finished.returncode == 1
    assert finished.stderr == f"error: cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_service_commands_show_their_own_help() -> None:
    assert "--max-context-length" in run("target", "--help").stdout
