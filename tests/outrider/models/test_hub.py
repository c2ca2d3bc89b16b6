"""Models by their ids on a hub: a small one of our own, with the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from outrider.models.hub import revision_of

COMMIT = "c" * 40
FILES = {
    "config.json": "{}",
    "tokenizer.json": "{}",
    "model-00001-of-00001.safetensors": "weights",
    "consolidated.safetensors": "the same again",
    "pytorch_model.bin": "a pickle",
    "modeling_mine.py": "code",
    "onnx/config.json": "{}",
}
PROGRAM = """
import sys
from outrider.errors import ModelNotFound
from outrider.models.hub import downloaded
try:
    print(downloaded(sys.argv[1], len(sys.argv) > 2))
except ModelNotFound as error:
    print("error:", error)
"""


class Hub(BaseHTTPRequestHandler):
    """Serves FILES as the model some/model."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        file = path.removeprefix(f"/some/model/resolve/{COMMIT}/")
        if path == "/api/models/some/model/revision/main":
            self._answer(json.dumps({"id": "some/model", "sha": COMMIT}))
        elif path == f"/api/models/some/model/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(text), "oid": f"{len(text):040}"}
                for name, text in FILES.items()
            ]
            self._answer(json.dumps(entries))
        elif file in FILES:
            self._answer(FILES[file])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{len(text):040}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(endpoint: str, home: Path, *arguments: str) -> str:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.process
def test_what_a_model_is_served_from_is_downloaded_once(endpoint: str, tmp_path: Path) -> None:
    folder = Path(ask(endpoint, tmp_path, "some/model"))
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model-00001-of-00001.safetensors",
    }
    assert revision_of(str(folder)) == COMMIT
    assert ask("http://127.0.0.1:9", tmp_path, "some/model") == str(folder)  # there is no hub


@pytest.mark.process
def test_code_and_pickles_are_downloaded_on_request(endpoint: str, tmp_path: Path) -> None:
    folder = Path(ask(endpoint, tmp_path, "some/model", "trusted"))
    assert {"modeling_mine.py", "pytorch_model.bin"} < {path.name for path in folder.iterdir()}


@pytest.mark.process
def test_what_cannot_be_had_is_told_in_a_line(endpoint: str, tmp_path: Path) -> None:
    assert ask(endpoint, tmp_path, "no/model").startswith(
        f"error: there is no folder 'no/model', and {endpoint} has no model of that name"
    )
    refused = ask("http://127.0.0.1:9", tmp_path, "none")
    assert refused.startswith(
        "error: there is no folder 'none', and http://127.0.0.1:9 cannot be asked for it: "
    )
    assert "\n" not in refused
    assert ask(endpoint, tmp_path, "a b/c") == "error: there is no folder or file 'a b/c'"


def test_folders_that_are_not_from_a_hub_have_no_revision() -> None:
    assert revision_of("/models/mine") == ""
