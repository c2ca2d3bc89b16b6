"""The delaying proxy on real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from outrider_bench.harness.delay import DelayingProxy


@contextmanager
def echo_server() -> Iterator[str]:
    """Sends back what it gets on each connection, and ends when the client does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def accept(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(1 << 16):
            connection.sendall(data)


@contextmanager
def through_proxy(rtt_seconds: float) -> Iterator[socket.socket]:
    """A connection to an echo server that is so far away."""
    with (
        echo_server() as upstream,
        DelayingProxy(upstream, rtt_seconds) as proxy,
        connect(proxy.address) as connection,
    ):
        yield connection


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_to_the_end(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_a_round_trip_takes_the_added_time() -> None:
    with through_proxy(0.05) as connection:
        for _ in range(3):
            began = time.perf_counter()
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            assert time.perf_counter() - began >= 0.05


def test_bytes_keep_their_order_and_the_end_comes_last() -> None:
    content = bytes(i * i % 251 for i in range(1 << 20))
    with through_proxy(0.01) as connection:
        sender = threading.Thread(target=send_all, args=(connection, content))
        sender.start()
        assert read_to_the_end(connection) == content
        sender.join()


def send_all(connection: socket.socket, content: bytes) -> None:
    connection.sendall(content)
    connection.shutdown(socket.SHUT_WR)


def test_what_is_under_way_does_not_wait_for_what_is_before_it() -> None:
    """Twenty messages, sent without waiting, take one delay and not twenty."""
    with through_proxy(0.2) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        for _ in range(20):
            connection.sendall(b"x")
            time.sleep(0.001)  # so that each is a piece of its own
        received = b""
        while len(received) < 20:
            received += connection.recv(20)
        assert time.perf_counter() - began < 20 * 0.2


def test_a_host_that_is_not_there_ends_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with (
        DelayingProxy(address, 0.01) as proxy,
        connect(proxy.address) as connection,
        suppress(ConnectionResetError),
    ):
        assert connection.recv(1) == b""


def test_the_end_of_the_proxy_ends_its_connections() -> None:
    with echo_server() as upstream:
        with DelayingProxy(upstream, 0.01) as proxy:
            connection = connect(proxy.address)
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
        with connection:
            assert connection.recv(1) == b""
