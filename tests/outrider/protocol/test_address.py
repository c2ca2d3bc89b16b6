from __future__ import annotations

import socket
from typing import Any

import pytest

from outrider.errors import ConfigurationError
from outrider.protocol.address import (
    check_address,
    check_free,
    dialable,
    host_without_brackets,
    join_host_port,
)
from tests.outrider.serving.test_listening import needs_ipv6


@pytest.mark.parametrize(
    "address",
    [
        "localhost:50051",
        "127.0.0.1:1",
        "[::1]:65535",
        "[fe80::1%eth0]:5",
        "a_name.of-compose:50051",
        "dns:///targets.internal:50053",
        "dns:targets.internal:50053",
        "ipv4:10.0.0.1:50053,10.0.0.2:50053",
        "unix:/run/outrider.sock",
        "unix:///run/outrider.sock",
    ],
)
def test_what_can_be_dialled_stays_as_it_is(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1", r"names no port: write 127\.0\.0\.1:PORT"),
        ("localhost:", "names no port"),
        ("http://localhost:50051", r"is a URL: write HOST:PORT, without http://"),
        ("grpc://localhost", "without grpc://"),
        ("127.0.0.1:9999999", "a number from 1 to 65535"),
        ("127.0.0.1:65536", "a number from 1 to 65535"),
        ("localhost:0", "a number from 1 to 65535"),
        ("localhost:grpc", "a number from 1 to 65535"),
        ("localhost:5005\uff11", "a number from 1 to 65535"),
        ("localhost:-1", "a number from 1 to 65535"),
        (":50051", "names no host"),
        ("", "names no host"),
        ("::1", r"is written \[ADDRESS\]:PORT"),
        ("::1:50051", r"is written \[ADDRESS\]:PORT"),
        ("[::1]", r"names no port: write \[::1\]:PORT"),
        ("[localhost]:1", "is not an IPv6 address"),
        ("localhost:1/path", "a number from 1 to 65535"),
        ("local host:1", "not of the form HOST:PORT"),
        ("localhost:50051\n", "a number from 1 to 65535"),
        ("user@host:1", "not of the form HOST:PORT"),
        ("\udcff:1", "not of the form HOST:PORT"),
        ("dns:///targets.internal", "names no port"),
        ("ipv4:10.0.0.1:1,10.0.0.2", "names no port"),
        (b"localhost:1", "is a string"),
        (50051, "is a string"),
    ],
)
def test_what_cannot_be_dialled_is_refused_by_what_is_wrong(address: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_address(address)


@pytest.mark.parametrize(
    ("host", "bare"),
    [("::", "::"), ("[::1]", "::1"), ("0.0.0.0", "0.0.0.0"), ("localhost", "localhost")],
)
def test_a_host_to_listen_on(host: str, bare: str) -> None:
    assert host_without_brackets(host) == bare


@pytest.mark.parametrize("host", ["", "localhost:50051", "http://host", "[host]", "a b", "[::1"])
def test_what_is_not_a_host_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a host"):
        host_without_brackets(host)


def test_an_ipv6_address_has_brackets_before_its_port() -> None:
    assert join_host_port("::1", 5) == "[::1]:5"
    assert join_host_port("localhost", 5) == "localhost:5"


@pytest.mark.parametrize(
    ("address", "here"),
    [("0.0.0.0:5", "127.0.0.1:5"), ("[::]:5", "[::1]:5"), ("10.0.0.1:5", "10.0.0.1:5")],
)
def test_a_wildcard_is_dialled_on_this_machine(address: str, here: str) -> None:
    assert dialable(address) == here


@needs_ipv6
def test_a_host_may_have_an_ipv6_address_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = socket.getaddrinfo("::1", 0, type=socket.SOCK_STREAM)
    monkeypatch.setattr("socket.getaddrinfo", lambda *arguments, **settings: found)
    check_free("a-name-of-it", 0)
