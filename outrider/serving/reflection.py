"""Server reflection, v1 and v1alpha, which also finds methods by name."""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

# grpcio-reflection serves v1alpha only. The messages of v1 are the same on the wire.
_V1_SERVICE = "grpc.reflection.v1.ServerReflection"


class _Symbols:
    """The default descriptor pool, with methods as symbols.

    protobuf's `FindFileContainingSymbol` does not find methods, which ghz asks for.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        """The descriptor of the file that defines `symbol`. Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file


def enable_reflection(server: grpc.aio.Server, service_names: Iterable[str]) -> None:
    """Lets clients query `server` for the descriptors of these services."""
    names, symbols = [*service_names, reflection.SERVICE_NAME], _Symbols()
    reflection.enable_server_reflection(names, server, symbols)
    v1 = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names, symbols).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = grpc.method_handlers_generic_handler(_V1_SERVICE, {"ServerReflectionInfo": v1})
    server.add_generic_rpc_handlers((handlers,))
