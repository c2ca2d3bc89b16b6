"""Where a service listens: names, IPv4 and IPv6, for calls and for Prometheus."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import urllib.request

import grpc
import pytest

from outrider.errors import ConfigurationError
from outrider.healthcheck import check
from outrider.protocol.address import dialable, join_host_port
from outrider.serving.server import _bind, start_metrics
from outrider.settings.options import ServerOptions

try:
    socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    HAS_IPV6 = True
except OSError:
    HAS_IPV6 = False

needs_ipv6 = pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
HOSTS = [
    "127.0.0.1",
    "localhost",
    "0.0.0.0",
    pytest.param("::1", marks=needs_ipv6),
    pytest.param("::", marks=needs_ipv6),
]


@pytest.mark.parametrize("host", HOSTS)
async def test_calls_reach_any_host(host: str) -> None:
    server = grpc.aio.server()
    address = dialable(join_host_port(host, _bind(server, host, 0)))
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="Method not found!"):
            await channel.unary_unary("/a/b")(b"")
    await server.stop(None)


@pytest.mark.parametrize("host", HOSTS)
async def test_metrics_are_at_the_same_host(host: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert (
            start_metrics(
                ServerOptions(host=host, metrics_port=0), "outrider.v1.DraftService", list
            )
            is not None
        )
    found = re.search(r"metrics at http://(\S+)/metrics", caplog.text)
    assert found is not None
    await asyncio.to_thread(get, f"http://{dialable(found[1])}/metrics")


def get(url: str) -> None:
    with urllib.request.urlopen(url, timeout=10) as response:
        assert response.status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
async def test_a_busy_port_is_named_once(host: str, capfd: pytest.CaptureFixture[str]) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(ConfigurationError) as caught:
            _bind(grpc.aio.server(options=[("grpc.so_reuseport", 0)]), host, port)
    where = join_host_port(host, port)
    assert str(caught.value) == f"cannot listen on {where}: Address already in use"
    assert capfd.readouterr().err == ""


def test_the_health_of_what_is_no_address_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="names no port"):
        check("localhost", 1.0)
