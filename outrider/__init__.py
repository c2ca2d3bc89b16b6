"""Outrider: speculative decoding as a gRPC service pair.

from outrider import Client

print(Client("localhost:50051").generate("Once upon a time").text)
"""

from outrider.client import AsyncClient, Client
from outrider.errors import OutriderError
from outrider.generation import Generation, ServerInfo, TextPiece

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client", "Generation", "OutriderError", "ServerInfo", "TextPiece"]
