"""Errors for clients: a status code, a reason, details of limited size."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from outrider.errors import DOMAIN, InvalidRequest, OutriderError, WrongService
from outrider.protocol.interceptors import Around, Behaviour, Context, Method
from outrider.protocol.request_id import REQUEST_ID_KEY, request_id

log = logging.getLogger(__name__)


class ErrorInterceptor(Around):
    """Converts exceptions in handlers to a status code and `google.rpc.ErrorInfo`.

    The text of an unexpected exception is logged, and not sent to the client.
    """

    def wrap(self, method: Method, behaviour: Behaviour) -> Behaviour:
        async def guarded(request: Any, context: Context) -> Any:
            try:
                if isinstance(request, DecodeError):
                    raise request
                return await behaviour(request, context)
            except OutriderError as error:
                await _abort(context, error)
            except DecodeError as error:
                await _abort(context, InvalidRequest(f"the request cannot be decoded: {error}"))
            except grpc.aio.AbortError:
                raise
            except Exception:
                log.exception("a request failed")
                await _abort(context, OutriderError("internal error"))

        return guarded

    def around_messages(self, method: Method, handler: Any) -> Any:
        """Passes an exception in decoding a request to the handler, in place of the request.

        Otherwise gRPC would answer UNKNOWN and reveal internal class names.
        """
        if handler.request_streaming:
            return handler
        return handler._replace(
            request_deserializer=_returning_errors(handler.request_deserializer)
        )


def _returning_errors(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def returning_errors(message: bytes) -> Any:
        try:
            return decode(message)
        except DecodeError as error:
            return error

    return returning_errors


class OtherServices(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Answers calls of either of the other two services by an error that names this one."""

    def __init__(self, service_name: str) -> None:
        self._service_name = service_name

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        called = handler_call_details.method[1:].partition("/")[0]
        if handler is not None or not called.startswith("outrider.v1."):
            return handler
        if called == self._service_name:
            return None  # gRPC answers that there is no such method

        async def refuse(requests: AsyncIterator[bytes], context: Context) -> None:
            await _abort(context, WrongService(f"this is {self._service_name}, not {called}"))

        return grpc.stream_stream_rpc_method_handler(refuse)


async def _abort(context: Context, error: OutriderError) -> None:
    status = status_to_wire(error)
    metadata: list[tuple[str, str | bytes]] = [
        ("grpc-status-details-bin", status.SerializeToString()),
        (REQUEST_ID_KEY, request_id.get()),
    ]
    if error.retry_after is not None:  # gRPC's own retries heed this, and not RetryInfo
        metadata.append(("grpc-retry-pushback-ms", str(round(error.retry_after * 1e3))))
    await context.abort(
        grpc.StatusCode[error.code.name], status.message, trailing_metadata=tuple(metadata)
    )


def status_to_wire(error: OutriderError) -> status_pb2.Status:
    """The status for an error: code, reason and, if it has one, the time after which to retry.

    Long texts are truncated: with more than 8 KiB of metadata, the client would see another error.
    """
    status = status_pb2.Status(code=error.code.value, message=_cut(error.message, 1024))
    metadata = {key: _cut(value, 256) for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after * 1e3))
        status.details.add().Pack(retry)
    return status


def _cut(text: str, num_bytes: int) -> str:
    """The first `num_bytes` bytes of UTF-8; "..." follows if that is not all."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= num_bytes:
        return encoded.decode()
    return encoded[:num_bytes].decode(errors="ignore") + "..."
