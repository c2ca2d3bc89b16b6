"""The stages of latency reports, and the tracks on which their time passes.

Reports, metrics, traces and pages take their words from here. `docs/latency.md` explains each
stage, and `StageDuration` in the protocol lists them.
"""

from enum import StrEnum
from typing import Self


class Track(StrEnum):
    """Where time passes."""

    DRAFT = "draft"
    TARGET = "target"
    NETWORK = "network"
    ORCHESTRATOR = "orchestrator"


class Stage(StrEnum):
    """A stage: its key on the wire, its track, and what happens in it, in at most 30 characters."""

    track: Track
    meaning: str

    def __new__(cls, key: str, track: Track, meaning: str) -> Self:
        stage = str.__new__(cls, key)
        stage._value_, stage.track, stage.meaning = key, track, meaning
        return stage

    TOKENIZE = "tokenize", Track.ORCHESTRATOR, "prompt to tokens"
    QUEUE = "queue", Track.ORCHESTRATOR, "wait for a slot of the target"
    PREFILL_TARGET = "prefill_target", Track.TARGET, "target reads the prompt"
    PREFILL_NETWORK = "prefill_network", Track.NETWORK, "prompt out, first token back"
    PREFILL_DRAFT = "prefill_draft", Track.DRAFT, "draft reads the prompt"
    DRAFT_QUEUE = "draft_queue", Track.DRAFT, "wait for a pass of the draft"
    DRAFT_COMPUTE = "draft_compute", Track.DRAFT, "draft proposes tokens"
    DRAFT_NETWORK = "draft_network", Track.NETWORK, "request out, proposal back"
    VERIFY_QUEUE = "verify_queue", Track.TARGET, "wait for a pass of the target"
    VERIFY_COMPUTE = "verify_compute", Track.TARGET, "target verifies tokens"
    VERIFY_NETWORK = "verify_network", Track.NETWORK, "request out, result back"
    ORCHESTRATOR = "orchestrator", Track.ORCHESTRATOR, "decisions, commits, messages"
    DETOKENIZE = "detokenize", Track.ORCHESTRATOR, "tokens to text"
    DELIVER = "deliver", Track.ORCHESTRATOR, "text handed to the client"
