"""How an engine is loaded and run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to load and run a model. None: the engine chooses.

    `slots`: the number of sessions; a draft's session may own several slots of the cache.
    `cached_tokens`: the most tokens that all slots together may hold.
    `is_draft`: the model is a draft, so a target may be loaded on the same device.
    `tensor_parallel`: the number of processes that share the model as ranks of torchrun.
    `graphs`: on CUDA, replay short passes as CUDA graphs.
    `batch_invariant`: give a token the same logits in every pass, where that is possible.
    `adapt_threads`: use fewer threads while other programs need the cores.
    `trust_remote_code`: code in the model's folder may be run, and pickles be read.
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
    cached_tokens: int | None = None
