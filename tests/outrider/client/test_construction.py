"""How clients are made, left, and used where they cannot work."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc
import pytest
import trustme

from outrider import AsyncClient, Client
from outrider.errors import ClientMisuse, ConfigurationError, ServiceUnavailable
from outrider.v1 import generation_pb2 as pb
from tests.support.scripted_service import ScriptedService, serving


@pytest.fixture
def endless() -> Iterator[tuple[ScriptedService, str]]:
    """A service whose texts do not end."""
    with serving() as (scripted, address):
        scripted.endless = True
        yield scripted, address


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def broken_off(client: Client, scripted: ScriptedService) -> None:
    for _ in client.stream("hi"):
        break


def failed(client: Client, scripted: ScriptedService) -> None:
    with suppress(KeyError):
        for _ in client.stream("hi"):
            raise KeyError


def zipped(client: Client, scripted: ScriptedService) -> None:
    assert len(list(zip(range(1), client.stream("hi"), strict=False))) == 1


def never_iterated(client: Client, scripted: ScriptedService) -> None:
    stream = client.stream("hi")
    assert scripted.began.wait(10)
    del stream


def with_statement(client: Client, scripted: ScriptedService) -> None:
    with client.stream("hi") as stream:
        next(stream)
    with pytest.raises(RuntimeError):
        _ = stream.result


@pytest.mark.parametrize("leave", [broken_off, failed, zipped, never_iterated, with_statement])
def test_a_stream_that_is_left_ends_its_call(
    leave: Any, endless: tuple[ScriptedService, str]
) -> None:
    scripted, address = endless
    with Client(address) as client, without_garbage_collection():
        client.info()
        leave(client, scripted)
        assert scripted.cancelled.wait(10)


async def async_broken_off(client: AsyncClient, scripted: ScriptedService) -> None:
    async for _ in client.stream("hi"):
        break


async def async_failed(client: AsyncClient, scripted: ScriptedService) -> None:
    with suppress(KeyError):
        async for _ in client.stream("hi"):
            raise KeyError


async def async_never_iterated(client: AsyncClient, scripted: ScriptedService) -> None:
    stream = client.stream("hi")
    assert await asyncio.to_thread(scripted.began.wait, 10)
    del stream


async def async_with_statement(client: AsyncClient, scripted: ScriptedService) -> None:
    async with client.stream("hi") as stream:
        await anext(stream)
    with pytest.raises(RuntimeError):
        _ = stream.result


@pytest.mark.parametrize(
    "leave", [async_broken_off, async_failed, async_never_iterated, async_with_statement]
)
async def test_an_async_stream_that_is_left_ends_its_call(
    leave: Any, endless: tuple[ScriptedService, str]
) -> None:
    scripted, address = endless
    async with AsyncClient(address) as client:
        with without_garbage_collection():
            await client.info()
            await leave(client, scripted)
            assert await asyncio.to_thread(scripted.cancelled.wait, 10)


def test_an_async_client_may_be_made_anywhere_and_outlive_an_event_loop(
    endless: tuple[ScriptedService, str],
) -> None:
    client = AsyncClient(endless[1])
    for _ in range(2):
        assert asyncio.run(client.info()).version == "9"


async def test_an_async_client_is_not_for_two_event_loops(
    endless: tuple[ScriptedService, str],
) -> None:
    client = AsyncClient(endless[1])
    await client.info()

    def elsewhere() -> None:
        with pytest.raises(ClientMisuse, match="another event loop: make one client for each"):
            asyncio.run(client.info())
        with pytest.raises(ClientMisuse, match="another event loop"):
            asyncio.run(client.close())

    await asyncio.to_thread(elsewhere)
    await client.info()
    await client.close()


def test_an_async_client_without_an_event_loop_names_the_other_client() -> None:
    with pytest.raises(ClientMisuse, match="Client is for code without one"):
        AsyncClient("localhost:1").stream("hi")


def test_a_stream_may_outlive_its_event_loop(
    endless: tuple[ScriptedService, str], recwarn: pytest.WarningsRecorder
) -> None:
    client = AsyncClient(endless[1])

    async def begin() -> Any:
        stream = client.stream("hi")
        await anext(stream)
        return stream

    stream = asyncio.run(begin())
    with pytest.raises(ClientMisuse, match="belongs to another event loop"):
        asyncio.run(stream.__anext__())
    del stream
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


def test_a_closed_client_says_so(endless: tuple[ScriptedService, str]) -> None:
    client = Client(endless[1])
    client.close()
    client.close()
    for use in (client.info, lambda: client.generate("hi"), lambda: client.stream("hi")):
        with pytest.raises(ClientMisuse, match="the client is closed"):
            use()


async def test_a_closed_async_client_says_so(endless: tuple[ScriptedService, str]) -> None:
    client = AsyncClient(endless[1])
    await client.info()
    await client.close()
    await client.close()
    with pytest.raises(ClientMisuse, match="the client is closed"):
        await client.generate("hi")
    with pytest.raises(ClientMisuse, match="the client is closed"):
        client.stream("hi")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("address", "settings", "message"),
    [
        ("127.0.0.1", {}, "names no port"),
        ("http://127.0.0.1:50051", {}, "is a URL"),
        ("127.0.0.1:9999999", {}, "from 1 to 65535"),
        ("localhost:1", {"metadata": [("Authorization", "x")]}, "these are lower case"),
        ("localhost:1", {"metadata": [("a", "\n")]}, "'a' must be printable"),
        ("localhost:1", {"metadata": [("a", b"x")]}, "'a' must be a string"),
        ("localhost:1", {"metadata": [("a-bin", "x")]}, "'a-bin' must be bytes"),
        ("localhost:1", {"metadata": {"A": "x"}}, "these are lower case"),
        ("localhost:1", {"options": {"grpc.x": 1.5}}, "'grpc.x' must be an integer or a string"),
        ("localhost:1", {"credentials": "key.pem"}, "must be grpc.ChannelCredentials"),
    ],
)
def test_what_no_call_could_use_is_refused_when_a_client_is_made(
    kind: Any, address: str, settings: Any, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        kind(address, **settings)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def encrypted(authority: trustme.CA) -> Iterator[tuple[ScriptedService, str]]:
    """A service that speaks TLS only."""
    certificate = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    key = certificate.private_key_pem.bytes()
    with serving(grpc.ssl_server_credentials([(key, chain)])) as (scripted, address):
        yield scripted, address


def credentials(authority: trustme.CA) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(authority.cert_pem.bytes())


def told(scripted: ScriptedService) -> None:
    """That the latest call came with what the client was given."""
    assert scripted.requests[-1] == pb.GenerateRequest(prompt="hi", max_new_tokens=9)
    metadata = scripted.metadata[-1]
    assert metadata["authorization"] == "Bearer x"
    assert metadata["x-request-id"] == "my-request/7"
    assert metadata["user-agent"].startswith("mine ")


GIVEN: Any = {
    "metadata": {"authorization": "Bearer x"},
    "options": [("grpc.primary_user_agent", "mine")],
}


def test_tls_metadata_options_and_request_id(
    authority: trustme.CA, encrypted: tuple[ScriptedService, str]
) -> None:
    scripted, address = encrypted
    with Client(address, credentials=credentials(authority), **GIVEN) as client:
        client.generate("hi", max_new_tokens=9, request_id="my-request/7")
        told(scripted)
        list(client.stream("hi", max_new_tokens=9, request_id="my-request/7"))
        told(scripted)
    with Client(address) as plain, pytest.raises(ServiceUnavailable, match="needs credentials"):
        plain.info()


async def test_tls_metadata_options_and_request_id_in_asyncio(
    authority: trustme.CA, encrypted: tuple[ScriptedService, str]
) -> None:
    scripted, address = encrypted
    async with AsyncClient(address, credentials=credentials(authority), **GIVEN) as client:
        await client.generate("hi", max_new_tokens=9, request_id="my-request/7")
        told(scripted)
        _ = [p async for p in client.stream("hi", max_new_tokens=9, request_id="my-request/7")]
        told(scripted)
