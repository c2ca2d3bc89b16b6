"""A GenerationService that plays a script, for tests of what talks to one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from outrider.errors import OutriderError
from outrider.v1 import generation_pb2 as pb
from outrider.v1 import generation_pb2_grpc as pb_grpc

PIECES = [
    pb.TextPiece(text="Hello", token_id=7, source=pb.TOKEN_SOURCE_DRAFT),
    pb.TextPiece(text=" you", token_id=8, source=pb.TOKEN_SOURCE_TARGET),
]


ACTIVITY = pb.ServerActivity(uptime_ns=3_725_000_000_000)


def response() -> pb.GenerateResponse:
    return pb.GenerateResponse(
        text="Hello you",
        token_ids=[7, 8],
        finish_reason=pb.FINISH_REASON_LENGTH,
        seed=5,
        usage=pb.Usage(num_prompt_tokens=3, num_output_tokens=2),
        speculation=pb.SpeculationStats(
            num_steps=1,
            num_draft_tokens=2,
            num_accepted_tokens=1,
            draft_acceptance_rate=0.5,
            mean_acceptance_length=2.0,
            acceptance_histogram=[0, 1, 0],
        ),
        latency=pb.LatencyReport(
            wall_ns=100,
            ttft_ns=60,
            tpot_ns=40,
            critical_path=[
                pb.StageDuration(stage="verify", duration_ns=70),
                pb.StageDuration(stage="draft", duration_ns=30),
            ],
            hidden=[pb.StageDuration(stage="detokenize", duration_ns=4)],
        ),
    )


class ScriptedService(pb_grpc.GenerationServiceServicer):
    """Keeps what it was asked. `endless` streams send one message and then wait."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.metadata: list[dict[str, str]] = []  # of those requests
        self.error: OutriderError | None = None
        self.loading: OutriderError | None = None  # what the first three queries are answered
        self.num_queries = 0
        self.endless = False
        self.breaks = False  # in the middle of a stream
        self.has_chat_template = False
        self.activities: deque[pb.ServerActivity] = deque()
        self.began = threading.Event()  # an endless stream
        self.cancelled = threading.Event()
        self.outage: pb.DraftOutage | None = None

    def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:
        self._begin(request, context)
        return self._response(request)

    def GenerateStream(
        self, request: pb.GenerateRequest, context: Any
    ) -> Iterator[pb.GenerateStreamResponse]:
        self._begin(request, context)
        if self.endless:
            context.add_callback(self.cancelled.set)
            self.began.set()
            yield pb.GenerateStreamResponse(pieces=PIECES[:1])
            self.cancelled.wait()
            return
        yield pb.GenerateStreamResponse(pieces=PIECES)
        if self.breaks:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the target is gone")
        yield pb.GenerateStreamResponse(result=self._response(request))

    def GetServerInfo(
        self, request: pb.GetServerInfoRequest, context: Any
    ) -> pb.GetServerInfoResponse:
        self.num_queries += 1
        if self.loading is not None and self.num_queries <= 3:
            abort(context, self.loading)
        info = pb.GetServerInfoResponse(version="9", has_chat_template=self.has_chat_template)
        info.target.model_id = "the-target"
        info.target.device = "cpu"
        if self.outage is not None:
            info.draft_outage.CopyFrom(self.outage)
        info.activity.CopyFrom(self.activities.popleft() if self.activities else ACTIVITY)
        return info

    def _response(self, request: pb.GenerateRequest) -> pb.GenerateResponse:
        answer = response()
        if request.trace:
            answer.trace.add(track="target", lane="session", name="verify", duration_ns=70)
        return answer

    def _begin(self, request: pb.GenerateRequest, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.error is not None:
            abort(context, self.error)


def abort(context: Any, error: OutriderError) -> None:
    context.set_trailing_metadata((("grpc-status-details-bin", details(error)),))
    context.abort(grpc.StatusCode[error.code.name], error.message)


def details(error: OutriderError) -> bytes:
    info = AnyMessage()
    info.Pack(error_details_pb2.ErrorInfo(reason=error.reason, metadata=error.metadata))
    code = error.code.value
    return status_pb2.Status(code=code, message=error.message, details=[info]).SerializeToString()


@contextmanager
def serving(
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[tuple[ScriptedService, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    scripted = ScriptedService()
    pb_grpc.add_GenerationServiceServicer_to_server(scripted, server)
    if credentials is None:
        port = server.add_insecure_port("localhost:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    server.start()
    try:
        yield scripted, f"localhost:{port}"
    finally:
        scripted.cancelled.set()
        server.stop(None).wait()
