"""Outrider: speculative decoding as a gRPC service pair.

from outrider import Client

print(Client("localhost:50051").generate("Once upon a time").text)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider.client import AsyncClient, Client
    from outrider.client.results import Generation, ServerInfo
    from outrider.errors import OutriderError
    from outrider.protocol.messages import TextPiece

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client", "Generation", "OutriderError", "ServerInfo", "TextPiece"]

# Imported on first use: the engine needs no gRPC.
_HOMES = {
    "AsyncClient": "outrider.client",
    "Client": "outrider.client",
    "Generation": "outrider.client.results",
    "OutriderError": "outrider.errors",
    "ServerInfo": "outrider.client.results",
    "TextPiece": "outrider.protocol.messages",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
