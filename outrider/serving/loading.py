"""Loads a model for a service: weights, tokenizer, warm-up."""

import asyncio
import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from outrider import __version__
from outrider.embedded import EMBEDDED_TARGET, resolve_model
from outrider.engine.activity import PassCounts
from outrider.engine.chunk import Chunk
from outrider.engine.cpu.pass_comparison import compare_passes
from outrider.engine.device import QUANTIZED
from outrider.engine.engine import Engine
from outrider.engine.loading.model_folder import (
    is_eagle3,
    read_settings,
    settings_not_applied,
    tokenizer_folder,
)
from outrider.engine.options import EngineOptions
from outrider.engine.scheduling.batch_limits import measure_batch_limits
from outrider.engine.scheduling.threads import measured_threads, use_free_cores
from outrider.errors import ConfigurationError
from outrider.models.chat_template import ChatTemplate
from outrider.models.hub import revision_of
from outrider.models.tokenizer_files import (
    check_vocabulary,
    chunks,
    read_tokenizer,
    to_bytes,
    turn_end_ids,
    vocabulary_fingerprint,
)
from outrider.protocol.messages import GREEDY, ModelInfo, SamplingParams
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.serving.model_service import ServedModel

log = logging.getLogger(__name__)

Progress = Callable[[str], None]

T = TypeVar("T")

_WARM_UP_LENGTH = 64
_WARM_UP_WIDTHS = (1, 2, 3, 5, 9)
_WARM_UP_PREDRAFTS = 4
_WARM_UP_PARAMS = (GREEDY, SamplingParams(1.0), SamplingParams(1.0, top_p=0.9))


async def in_own_thread(function: Callable[[], T]) -> T:
    """Awaits `function` on a new thread, which ends with it. If cancelled, does not wait for it.

    OpenMP keeps a pool of workers for each thread that has computed. When the pools together have
    more workers than there are cores, libgomp sleeps at every barrier, and passes on the engine's
    thread take 1.5 times as long.
    """
    executor = ThreadPoolExecutor(1, "load")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, function)
    finally:
        executor.shutdown(wait=False)


def wait_for_own_thread(function: Callable[[], T]) -> T:
    """`in_own_thread` without an event loop. Waits for the thread even if interrupted."""
    with ThreadPoolExecutor(1, "load") as executor:
        return executor.submit(function).result()


def report_loading(what: str) -> None:
    """Prints a line of progress, for the process that started this one."""
    print(f"loading {what}", flush=True)


def load_served_model(
    options: EngineOptions, progress: Progress = report_loading, num_choices: int = 1
) -> tuple[Engine, ServedModel]:
    """Loads an engine, runs some passes, and describes it.

    Args:
        num_choices: how many choices the service needs per token: for a draft, the token and its
            runners-up; for a target, 1.

    Raises the exceptions of `Engine`, and UnsupportedModel if there is no fast tokenizer.
    """
    name = EMBEDDED_TARGET if options.model == "default" else options.model
    began = time.perf_counter()
    path = resolve_model(name, progress, options.trust_remote_code)
    read_settings(path)  # first of all, whether it is a model's folder
    ignored = settings_not_applied(path)
    if ignored and not options.is_draft:
        log.warning("%s: generation_config.json is not heeded in %s", name, ", ".join(ignored))
    progress(f"{name}: tokenizer")
    files = read_tokenizer(tokenizer_folder(path), options.trust_remote_code)
    template = ChatTemplate.of(files)
    if template is not None and template.fault is not None:
        log.warning(
            "%s: its chat template is broken, messages are refused: %s", name, template.fault
        )
    progress(f"{name}: weights")
    engine = _engine(dataclasses.replace(options, model=path), name)
    engine.eos_token_ids = tuple(dict.fromkeys([*engine.eos_token_ids, *turn_end_ids(files)]))
    check_vocabulary(name, files, engine.vocab_size)
    progress(f"{name}: warm-up")
    warm_up(engine, num_choices)
    use_free_cores(engine.thread_counts)  # cores that loaded the other model may be free again
    engine.batch_limits = measure_batch_limits(engine, replays_steps=engine.graphs is not None)
    if (claim := engine.batch_invariance) is not None:
        engine.batch_invariance = claim = compare_passes(engine, claim, engine.batch_limits.widest)
        engine.batch_limits = dataclasses.replace(engine.batch_limits, max_tokens=claim.max_tokens)
        log.info("%s: bits do not depend on the pass: %s", name, claim)
    engine.threads = measured_threads(engine)
    engine.passes = PassCounts()  # without those of loading
    for slot in range(engine.cache.num_slots):
        deque(engine.cache.give_back(slot), maxlen=0)
    dtype = options.dtype if options.dtype in QUANTIZED else str(engine.dtype)[len("torch.") :]
    num_sessions = engine.cache.num_slots // options.slots_per_session
    log.info(
        "%s on %s in %s: KV cache for %d sessions of %d tokens, at most %.0f MB; "
        "passes of up to %d tokens; loaded in %.1f s",
        name,
        engine.device,
        dtype,
        num_sessions,
        engine.max_context_length,
        engine.cache.num_bytes / 1e6,
        engine.batch_limits.token_budget,
        time.perf_counter() - began,
    )
    info = ModelInfo(
        model_id=name,
        revision=revision_of(path),
        dtype=dtype,
        device=str(engine.device),
        max_context_length=engine.max_context_length,
        vocab_size=engine.vocab_size,
        vocabulary_fingerprint=vocabulary_fingerprint(files.tokenizer_json),
        eos_token_ids=engine.eos_token_ids,
        num_slots=num_sessions,
        num_free_slots=num_sessions,
        version=__version__,
        token_ns=round(1e9 * engine.batch_limits.token_seconds),
        step_ns=round(1e9 * engine.batch_limits.step_seconds),
        batch_invariance=engine.batch_invariance,
        num_threads=engine.threads.current,
        num_layers=engine.num_layers,
        hidden_size=engine.hidden_size,
        gives_hidden_states=engine.gives_hidden_states,
        reads_hidden_states=engine.reads_hidden_states,
        max_cached_tokens=engine.token_limits.num_tokens or engine.cache.num_tokens,
    )
    return engine, ServedModel(info, tuple(chunks(to_bytes(files))))


def _engine(options: EngineOptions, name: str) -> Engine:
    if not is_eagle3(options.model):
        return Engine(options)
    if not options.is_draft:
        raise ConfigurationError(f"{name} reads hidden states of a target: it can only be a draft")
    from outrider.engine.eagle3.engine import Eagle3Engine

    return Eagle3Engine(options)


def warm_up(engine: Engine, num_choices: int = 1) -> None:
    """Runs typical passes, so that the first request is not slower than later ones."""
    length = min(_WARM_UP_LENGTH, engine.max_context_length - max(_WARM_UP_WIDTHS))
    if length < 1:
        return
    engine.forward([Chunk(0, 0, [0] * length, 1)])
    for width in _WARM_UP_WIDTHS * 2:
        engine.forward([Chunk(0, length, [0] * width, width)])
    # Passes of one session are recorded now, those of several when they first occur.
    for longer in engine.graphs.lengths if engine.graphs else ():
        for params in _WARM_UP_PARAMS:
            _record(engine, SamplingSpec(params, len(engine.logit_token_ids), num_choices), longer)


def _record(engine: Engine, spec: SamplingSpec, length: int) -> None:
    """Runs passes of one session up to a length: a draft's steps and predrafts, or results."""
    is_draft = spec.width > 1
    for width in _WARM_UP_WIDTHS:
        start = max(0, length - 2 * width)
        chunk = Chunk(0, start, [0] * width, num_logits=1 if is_draft else width)
        engine.choose([chunk], [spec], num_steps=2 if is_draft else 1)
    if is_draft:
        slots = range(min(_WARM_UP_PREDRAFTS, engine.cache.num_slots))
        chunks = [Chunk(slot, length - 2, [0], 1) for slot in slots]
        engine.choose(chunks, [spec] * len(chunks))
