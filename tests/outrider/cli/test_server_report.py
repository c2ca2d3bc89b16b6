from __future__ import annotations

from outrider.cli.server_report import in_words
from outrider.client.results import ServerInfo
from outrider.protocol.messages import ModelInfo


def test_models_in_words() -> None:
    def told(draft: ModelInfo | None) -> list[str]:
        target = ModelInfo("big", 8, 9, dtype="bfloat16", device="cuda:0")
        return in_words(ServerInfo("9", target, draft, 4, True)).splitlines()

    draft = ModelInfo("small", 8, 9, dtype="int8", device="cpu", num_threads=2)
    assert told(draft) == ["target: big bfloat16 (cuda:0)", "draft: small int8 (2 threads)"]
    assert told(None)[1] == "draft: none"
