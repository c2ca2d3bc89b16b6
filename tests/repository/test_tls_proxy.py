"""deploy/nginx.conf: TLS and tokens in front of an orchestrator, by the real nginx."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from outrider import Client
from outrider.errors import OutriderError, QueueFull, StatusCode
from tests.support.scripted_service import ScriptedService, serving

CONFIGURATION = Path(__file__).parents[2] / "deploy/nginx.conf"
TOKEN = {"authorization": "Bearer CHANGE-ME"}

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed"),
]


def configured(folder: Path, port: int, orchestrator: str) -> str:
    """As shipped, but for files in `folder`, these addresses, and no daemon."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    text = CONFIGURATION.read_text()
    for shipped, here in {
        "events {}": f"events {{}}\ndaemon off;\npid {folder}/pid;\nerror_log {folder}/errors;",
        "http {": f"http {{\naccess_log off;\n{temporary}",
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/outrider": str(folder),
        "127.0.0.1:50051;": f"{orchestrator};",
    }.items():
        assert shipped in text
        text = text.replace(shipped, here)
    return text


@pytest.fixture
def service() -> Iterator[tuple[ScriptedService, str]]:
    with serving() as scripted:
        yield scripted


@pytest.fixture
def proxy(
    service: tuple[ScriptedService, str], tmp_path: Path
) -> Iterator[tuple[str, grpc.ChannelCredentials]]:
    """Its address, and credentials that know its certificate."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "certificate.pem", append=True)
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = tmp_path / "nginx.conf"
    file.write_text(configured(tmp_path, port, service[1]))
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    process = subprocess.Popen(["nginx", "-e", tmp_path / "errors", "-p", tmp_path, "-c", file])
    try:
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            grpc.channel_ready_future(channel).result(30)
        yield f"localhost:{port}", credentials
    finally:
        process.terminate()
        process.wait()


def test_texts_and_errors_pass(
    service: tuple[ScriptedService, str], proxy: tuple[str, grpc.ChannelCredentials]
) -> None:
    address, credentials = proxy
    with Client(address, credentials=credentials, metadata=TOKEN) as client:
        assert client.generate("hi").text == "Hello you"
        assert "".join(piece.text for piece in client.stream("hi")) == "Hello you"
        service[0].error = QueueFull("many wait")
        with pytest.raises(QueueFull, match="many wait"):
            client.generate("hi")


@pytest.mark.parametrize("metadata", [{}, {"authorization": "Bearer another"}])
def test_a_call_without_a_token_does_not_pass(
    metadata: dict[str, str],
    service: tuple[ScriptedService, str],
    proxy: tuple[str, grpc.ChannelCredentials],
) -> None:
    address, credentials = proxy
    with (
        Client(address, credentials=credentials, metadata=metadata) as client,
        pytest.raises(OutriderError) as caught,
    ):
        client.generate("hi")
    assert caught.value.code is StatusCode.UNAUTHENTICATED
    assert not service[0].requests
