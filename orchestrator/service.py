"""The orchestrator as a process: connects to a pair and serves the generation API."""

from orchestrator.servicer import GenerationServicer
from orchestrator.sessions.pair import Pair
from outrider.serving.server import run, serve
from outrider.settings.options import ServerOptions
from outrider.v1.generation_pb2_grpc import add_GenerationServiceServicer_to_server


def run_orchestrator(
    server: ServerOptions,
    target: str,
    draft: str | None,
    max_queued: int,
    max_queue_seconds: float,
    max_new_tokens: int | None,
) -> None:
    """Serves until SIGINT or SIGTERM. Raises OutriderError.

    Args:
        target, draft: addresses; None: there is no draft.
        max_queued, max_queue_seconds, max_new_tokens: of GenerationServicer.
    """
    servicer = GenerationServicer(max_queued, max_new_tokens, max_queue_seconds)

    async def load() -> None:
        print("loading orchestrator: tokenizer", flush=True)
        servicer.serve_pair(await Pair.connect(target, draft, servicer.wait))

    register = add_GenerationServiceServicer_to_server
    run(serve(server, "GenerationService", register, servicer, load), server, "orchestrator")
