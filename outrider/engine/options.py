"""How an engine is loaded and run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to load and run a model. None leaves the choice to the engine.

    `slots` are sessions; a draft's may take several slots of the cache, for several outcomes.
    `is_draft`: a target may be loaded on the same device.
    `tensor_parallel` processes hold the model together, this one as a rank of torchrun's.
    `graphs`: short passes are replayed as CUDA graphs, on CUDA.
    `batch_invariant`: logits are the same in every pass, where that is possible.
    `adapt_threads`: fewer threads compute while other programs need the cores.
    `trust_remote_code`: code in the model's folder may run, and its pickles be read.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    slots: int | None = None
    max_context_length: int | None = None
    slots_per_session: int = 1
    is_draft: bool = False
    tensor_parallel: int = 1
    graphs: bool = True
    batch_invariant: bool = True
    adapt_threads: bool = False
    trust_remote_code: bool = False
