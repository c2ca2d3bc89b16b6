"""One answer as JSON, with its trace, and the page that shows it."""

from dataclasses import asdict
from typing import Any

from outrider.client.stream import GenerationStream


def record(prompt: str, stream: GenerationStream) -> dict[str, Any]:
    """What `outrider generate --json` prints, once the stream has ended.

    Raises:
        OutriderError: the call failed.
    """
    pieces = [asdict(piece) for piece in stream]
    generation = stream.result
    trace = [asdict(interval) for interval in generation.trace]
    return {"prompt": prompt, **generation.to_dict(), "pieces": pieces, "trace": trace}
