"""The client library against a service that plays a script."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from outrider import AsyncClient, Client
from outrider.client.request import Parameters
from outrider.errors import Cancelled, DeadlineExceeded, InvalidRequest, OutriderError
from outrider.protocol.channel import CLASS_BY_REASON
from outrider.protocol.messages import TextPiece
from outrider.v1 import generation_pb2 as pb
from tests.support.scripted_service import ScriptedService, serving


@pytest.fixture
def service() -> Iterator[tuple[ScriptedService, str]]:
    with serving() as pair:
        yield pair


@pytest.fixture
def scripted(service: tuple[ScriptedService, str]) -> ScriptedService:
    return service[0]


@pytest.fixture
def address(service: tuple[ScriptedService, str]) -> str:
    return service[1]


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_a_generation_as_a_dictionary(client: Client) -> None:
    document = client.generate("hi").to_dict()
    assert document == {
        "text": "Hello you",
        "token_ids": [7, 8],
        "finish_reason": "length",
        "seed": 5,
        "usage": {"num_prompt_tokens": 3, "num_output_tokens": 2},
        "speculation": {
            "num_steps": 1,
            "num_draft_tokens": 2,
            "num_accepted_tokens": 1,
            "draft_acceptance_rate": 0.5,
            "mean_acceptance_length": 2.0,
            "acceptance_histogram": [0, 1, 0],
            "num_cache_hits": 0,
            "num_cache_hit_accepted_tokens": 0,
            "num_predrafted_tokens": 0,
            "num_lookup_steps": 0,
            "num_lookup_draft_tokens": 0,
            "num_lookup_accepted_tokens": 0,
            "num_pipelined_steps": 0,
            "num_stale_steps": 0,
            "num_cache_misses": 0,
            "num_idle_steps": 0,
            "num_active_steps": 0,
        },
        "latency": {
            "wall_ns": 100,
            "ttft_ns": 60,
            "tpot_ns": 40,
            "critical_path": {"verify": 70, "draft": 30},
            "hidden": {"detokenize": 4},
        },
        "num_target_threads": 0,
        "draft_failure": "",
        "estimates": None,
    }
    assert list(document["latency"]["critical_path"]) == ["verify", "draft"]


def test_what_is_not_said_is_left_to_the_server(client: Client, scripted: ScriptedService) -> None:
    client.generate("hi", seed=None, top_p=None)
    assert scripted.requests == [pb.GenerateRequest(prompt="hi")]


def test_zero_is_said(client: Client, scripted: ScriptedService) -> None:
    client.generate("hi", seed=0, num_speculative_tokens=0)
    assert scripted.requests[0].HasField("seed")
    assert scripted.requests[0].HasField("num_speculative_tokens")


def test_a_conversation_travels_as_messages(client: Client, scripted: ScriptedService) -> None:
    client.generate([{"role": "user", "content": "hi"}])
    assert scripted.requests == [
        pb.GenerateRequest(messages=[pb.ChatMessage(role="user", content="hi")])
    ]


@pytest.mark.parametrize("stop", ["END", ["END"], ("END",)])
def test_one_stop_string_is_not_taken_apart(
    stop: Any, client: Client, scripted: ScriptedService
) -> None:
    client.generate("hi", stop_strings=stop)
    assert list(scripted.requests[0].stop_strings) == ["END"]


@pytest.mark.parametrize(
    ("prompt", "parameters", "message"),
    [
        ("hi", {"seed": -1}, "seed cannot be -1: it must be an integer from 0 to 2**64 - 1"),
        ("hi", {"seed": 2**64}, "seed cannot be 18446744073709551616"),
        ("hi", {"temperature": "0.8"}, "temperature cannot be '0.8': it must be a number"),
        ("hi", {"max_new_tokens": 2.5}, "max_new_tokens cannot be 2.5"),
        ("hi", {"top_k": True}, "top_k cannot be True"),
        ("hi", {"ignore_eos": "no"}, "ignore_eos cannot be 'no': it must be True or False"),
        ("hi", {"stop_strings": [1]}, "stop_strings cannot be [1]: it must be a list of text"),
        ("hi", {"stop_strings": 5}, "stop_strings cannot be 5"),
        ("hi", {"seed": "9" * 10_000}, "seed cannot be '99999"),
        ("hi", {"request_id": "a b"}, "request_id must be"),
        ("\ud800", {}, "prompt cannot be"),
        (b"hi", {}, "a prompt is a string"),
        (7, {}, "a prompt is a string"),
        ({"role": "user", "content": "hi"}, {}, "a prompt is a string"),
        (["hi"], {}, "messages[0] is not a mapping"),
        ([{"content": "hi"}], {}, "messages[0] has no 'role'"),
        ([{"role": "user", "content": None}], {}, "messages[0].content cannot be None"),
        ([{"role": "user", "content": "", "name": "x"}], {}, "unknown field 'name'"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_field(
    prompt: Any, parameters: Any, message: str, client: Client, scripted: ScriptedService
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.generate(prompt, **parameters)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200
    with pytest.raises(InvalidRequest):
        client.stream(prompt, **parameters)
    assert scripted.requests == []


def test_every_parameter_is_documented() -> None:
    text = Client.generate.__doc__ or ""
    for name in ("prompt", "timeout", "request_id", *Parameters.__annotations__):
        assert f"\n            {name}: " in text, name


@pytest.mark.parametrize("name", ["max_tokens", "prompt_", "messages"])
def test_an_unknown_parameter_is_a_type_error(name: str, client: Client) -> None:
    with pytest.raises(TypeError, match=name):
        client.generate("hi", **{name: 1})


def test_no_time_at_all_is_a_deadline(client: Client) -> None:
    client.info()  # connected, so that the calls could be answered at once
    with pytest.raises(DeadlineExceeded):
        client.generate("hi", timeout=0)
    with pytest.raises(DeadlineExceeded):
        list(client.stream("hi", timeout=0))


@pytest.mark.parametrize("timeout", ["soon", float("nan"), [1]])
def test_a_timeout_that_is_no_number_is_refused(timeout: Any, client: Client) -> None:
    with pytest.raises(InvalidRequest, match="timeout must be a number"):
        client.generate("hi", timeout=timeout)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, None, 60])
def test_a_timeout_beyond_all_times_is_none(timeout: Any, client: Client) -> None:
    assert client.generate("hi", timeout=timeout).text == "Hello you"


def test_a_stream_gives_pieces_then_the_result(client: Client) -> None:
    stream = client.stream("hi")
    assert list(stream) == [TextPiece("Hello", 7, "draft"), TextPiece(" you", 8, "target")]
    assert stream.result == client.generate("hi")


@pytest.mark.parametrize("closed", ["stream", "client"])
def test_closing_cancels_the_call(closed: str, address: str, scripted: ScriptedService) -> None:
    scripted.endless = True
    client = Client(address)
    stream = client.stream("hi")
    next(stream)
    (stream if closed == "stream" else client).close()
    assert scripted.cancelled.wait(10)
    with pytest.raises(Cancelled):
        next(stream)
    with pytest.raises(RuntimeError):
        _ = stream.result


@pytest.mark.process
def test_a_stream_left_open_does_not_hold_the_interpreter(
    address: str, scripted: ScriptedService
) -> None:
    scripted.endless = True
    program = (
        f"from outrider import Client\nstream = Client('{address}').stream('hi')\n"
        "print(next(stream).text)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (finished.returncode, finished.stdout) == (0, "Hello\n"), finished.stderr
    assert scripted.cancelled.wait(10)


@pytest.mark.parametrize("closed", ["stream", "client"])
async def test_closing_an_async_stream_is_not_a_cancelled_task(
    closed: str, address: str, scripted: ScriptedService
) -> None:
    scripted.endless = True
    async with AsyncClient(address) as client:
        stream = client.stream("hi")
        with pytest.raises(Cancelled):
            async for _ in stream:
                if closed == "stream":
                    stream.close()
                else:
                    await client.close()
    assert await asyncio.to_thread(scripted.cancelled.wait, 10)


async def test_a_cancelled_task_is_a_cancelled_task(
    address: str, scripted: ScriptedService
) -> None:
    scripted.endless = True
    began = asyncio.Event()

    async def read() -> None:
        async with AsyncClient(address) as client:
            async for _ in client.stream("hi"):
                began.set()

    task = asyncio.create_task(read())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(scripted.cancelled.wait, 10)


@pytest.mark.parametrize("kind", [OutriderError, *CLASS_BY_REASON.values()])
async def test_an_error_comes_back_as_its_class(
    kind: type[OutriderError], address: str, client: Client, scripted: ScriptedService
) -> None:
    scripted.error = kind("it is so", slot="3")

    def fail() -> OutriderError:
        with pytest.raises(OutriderError) as caught:
            list(client.stream("hi"))
        return caught.value

    async with AsyncClient(address) as other:
        with pytest.raises(OutriderError) as caught:
            await other.generate("hi")
    for error in (caught.value, await asyncio.to_thread(fail)):
        assert type(error) is kind
        assert (error.message, error.code) == ("it is so", kind.code)
        assert error.metadata == {"slot": "3"} or kind is OutriderError
