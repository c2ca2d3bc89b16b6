"""The base class of gRPC interceptors for metrics, request ids, spans and errors."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[Any, Context], Awaitable[Any]]

_KINDS = {
    "unary_unary": "unary",
    "unary_stream": "server_stream",
    "stream_stream": "bidi_stream",
}

_QUIET = {"GetModelInfo", "GetServerInfo", "GetTokenizer"}


@dataclass(frozen=True, slots=True)
class Method:
    """An RPC. `kind` is "unary", "server_stream" or "bidi_stream"."""

    service: str
    name: str
    kind: str

    @property
    def is_quiet(self) -> bool:
        """Whether monitors call it so often that its calls should not be logged."""
        return self.name in _QUIET


class Around(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Wraps the handlers of Outrider's services, but not of health, reflection and channelz.

    Handlers are coroutines that write to their context. Subclasses define `wrap`, or `around`, a
    context manager in which the handler runs, and which sees its exception or cancellation.
    """

    def wrap(self, method: Method, behaviour: Behaviour) -> Behaviour:
        """The wrapped handler. By default, it runs within `around`."""

        async def wrapped(request: Any, context: Context) -> Any:
            with self.around(method, context):
                return await behaviour(request, context)

        return wrapped

    def around(self, method: Method, context: Context) -> AbstractContextManager[None]:
        """The context manager in which a call runs."""
        raise NotImplementedError

    def around_messages(self, method: Method, handler: Any) -> Any:
        """May wrap the handler's serializers, to process messages."""
        return handler

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or not path.startswith("/outrider.v1."):
            return handler
        service, name = path[1:].split("/")
        for attribute, kind in _KINDS.items():
            if (behaviour := getattr(handler, attribute)) is not None:
                method = Method(service, name, kind)
                wrapped = handler._replace(**{attribute: self.wrap(method, behaviour)})
                return self.around_messages(method, wrapped)
        return handler


def call_code(context: Context, error: BaseException | None) -> grpc.StatusCode:
    """The status code of a call whose handler returned or, if `error` is set, raised it."""
    if error is None:
        return grpc.StatusCode.OK
    if isinstance(error, grpc.aio.AbortError):
        return _CODES[context.code()]
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


@contextmanager
def telling_the_end(context: Context, tell: Callable[[grpc.StatusCode], None]) -> Iterator[None]:
    """Context manager that calls `tell` with the final status code of the call."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        tell(call_code(context, error))


_CODES: dict[Any, grpc.StatusCode] = {
    name: code for code in grpc.StatusCode for name in (code, code.value[0])
}
