"""The Python client library."""

from outrider.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
