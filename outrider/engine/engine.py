"""Loads a Hugging Face causal language model, and runs forward passes of packed chunks."""

import gc
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from outrider.engine.activity import PassCounts
from outrider.engine.attention.forward_pass import Pass
from outrider.engine.attention.rope import rope_of
from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.cache.memory import allocate
from outrider.engine.chunk import Capture, Chunk, deliver, logit_rows
from outrider.engine.cpu.calibration import attention_kinds, calibrate
from outrider.engine.cpu.embeddings import halve_embeddings
from outrider.engine.cpu.int4_linear import pack_in_int4
from outrider.engine.cpu.int8_linear import quantize_linears
from outrider.engine.cpu.packed_linear import pack_linears
from outrider.engine.device import choose_device, choose_dtype, is_gpu
from outrider.engine.loading.draft_vocabulary import read_draft_vocabulary, trim_head
from outrider.engine.loading.model_config import check_layers, context_length
from outrider.engine.loading.model_folder import eos_token_ids
from outrider.engine.loading.weights import load_model
from outrider.engine.network import Build, compile_network, networks_for
from outrider.engine.options import EngineOptions
from outrider.engine.scheduling.batch_limits import BatchLimits
from outrider.engine.scheduling.threads import AdaptiveThreads, use_threads
from outrider.engine.self_check import check_boundaries
from outrider.engine.shapes import ANY_SHAPES
from outrider.engine.soundness import Result, check_finite, clear_unsound, difference, same_states
from outrider.engine.tensor_parallel import Ranks
from outrider.errors import UnsupportedModel
from outrider.protocol.hidden_states import HiddenStateSpec
from outrider.protocol.messages import BatchInvariance
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice

if TYPE_CHECKING:
    from outrider.engine.cuda.static_choices import StaticChoices
    from outrider.engine.cuda.static_passes import Record, StaticPasses

log = logging.getLogger(__name__)

_PROBE_LENGTH = 24


class Engine:
    """A model with a slot cache. Maps chunks of tokens to logits, or, on a GPU, to chosen tokens.

    `logit_token_ids` [num_ids] are the tokens of the logits' columns, ascending:
    all, or those of the model's draft vocabulary. If `gives_hidden_states`, chunks can capture
    hidden states: on CPUs only, where they are compared with those of transformers.

    Raises:
        ModelNotFound: no such model, or its files cannot be read.
        UnsupportedModel: the model's logits differ from those of transformers.
        ConfigurationError: a device or length that is not available.
    """

    batch_limits = BatchLimits()
    """How many tokens a pass should have; measured when the model is loaded for a service."""
    threads: AdaptiveThreads | None = None
    cache: SlotCache
    gives_hidden_states = False
    reads_hidden_states: HiddenStateSpec | None = None

    def __init__(self, options: EngineOptions) -> None:
        num_ranks = options.tensor_parallel
        self.ranks = Ranks(num_ranks, options.device) if num_ranks > 1 else None
        self.device = choose_device(self.ranks.device if self.ranks else options.device)
        self.thread_counts = use_threads(
            options.threads, adapt=options.adapt_threads and self.device.type == "cpu"
        )
        self.dtype = choose_dtype(options.dtype, self.device)
        self.is_int4, self.is_int8 = options.dtype == "int4", options.dtype == "int8"
        self._trusts_code = options.trust_remote_code
        self._on_gpu = is_gpu(self.device)
        self.attention_shapes = ANY_SHAPES
        self._is_plain_cpu = not (self._on_gpu or self.is_int8 or self.ranks)
        is_compared = self._is_plain_cpu and options.batch_invariant
        self.batch_invariance = BatchInvariance(holds=False) if is_compared else None
        self.passes = PassCounts()
        self.network = self._load(options)
        if self._on_gpu:  # frees the weights that our layers have copied
            gc.collect()
            torch.cuda.empty_cache()
        if self.is_int8:
            quantize_linears(self.network)
            compile_network(self.network)
        if self.device.type == "cpu" and self.ranks is None:
            halve_embeddings(self.network)
        with torch.inference_mode():
            least = self.ranks.least if self.ranks else int
            self.cache, self.token_limits = allocate(
                self.cache, options, self.max_context_length, self.device, least
            )
        self.graphs: StaticPasses | None = None
        self.choices: StaticChoices | None = None
        if options.graphs and self.device.type == "cuda" and not (self.ranks or self.rope.kind):
            from outrider.engine.cuda.static_passes import CudaRecorder

            self.use_graphs(CudaRecorder(self.device))
            self.use_choices()

    def _load(self, options: EngineOptions) -> nn.Module:
        """The network of a model's folder, which has run; sets what the model decides."""
        trusted = options.trust_remote_code
        model = load_model(options.model, self.device, self.dtype, self.ranks, trusted)
        draft_vocabulary = read_draft_vocabulary(options.model)
        self.has_draft_vocabulary = draft_vocabulary is not None
        self.logit_token_ids = trim_head(model, draft_vocabulary)
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self._follow_config(model.config.get_text_config(), options)
        self.cache = self._probing_cache()
        return self._adopt(model, options.model)

    def _follow_config(self, config: Any, options: EngineOptions) -> None:
        self.config = config
        self.num_layers: int = config.num_hidden_layers
        self.hidden_size: int = config.hidden_size
        self.eos_token_ids = eos_token_ids(options.model, config, self.vocab_size)
        self.max_context_length = context_length(
            config, options.max_context_length, options.is_draft
        )
        self.rope = rope_of(config)

    def _probing_cache(self) -> SlotCache:
        return SlotCache(1, min(_PROBE_LENGTH, self.max_context_length), self.attention_shapes)

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Runs one pass. Returns each chunk's logits, [num_logits, num_ids]."""
        self.cache.copy_for(chunks)
        return self._forward(chunks)

    @torch.inference_mode()
    def choose(
        self, chunks: Sequence[Chunk], specs: Sequence[SamplingSpec], num_steps: int = 1
    ) -> list[list[list[Choice]]] | list[Tensor]:
        """See `StaticChoices.choose`. Returns the logits of `forward` if there is no recording."""
        self.cache.copy_for(chunks)
        began = time.perf_counter_ns()
        chosen = self.choices.choose(chunks, specs, num_steps) if self.choices else None
        if chosen is None:
            return self._forward(chunks)
        lengths = [len(chunk.token_ids) for chunk in chunks]
        num_passes = 1 if max(chunk.num_logits for chunk in chunks) > 1 else len(chosen[0])
        duration_ns = (time.perf_counter_ns() - began) // num_passes
        for _ in range(num_passes):
            self.passes.count(lengths, duration_ns)
            lengths = [1] * len(chunks)
        return chosen

    @torch.inference_mode()
    def clear_unsound(self, chunks: Sequence[Chunk], results: Sequence[Result]) -> list[bool]:
        """See `soundness.clear_unsound`."""
        return clear_unsound(self.cache, chunks, results)

    def _forward(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        if self.ranks:
            self.ranks.announce(chunks)
        began = time.perf_counter_ns()
        logits = self.graphs.forward(chunks) if self.graphs else None
        if logits is None:
            logits = self._plain(chunks)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the pass has only been queued
        duration_ns = time.perf_counter_ns() - began
        self.passes.count([len(chunk.token_ids) for chunk in chunks], duration_ns)
        return logits

    def _plain(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        return self._run(chunks)[0]

    @torch.inference_mode()
    def use_graphs(self, record: "Record") -> None:
        """Enables recording of short passes, provided that it does not change their logits."""
        from outrider.engine.cuda.recording_check import checked_passes

        self.graphs = checked_passes(
            self.network, self.cache, self.device, record, self._plain, self._tolerance
        )

    @torch.inference_mode()
    def use_choices(self) -> None:
        """Lets recorded passes choose tokens, provided that the choices are the same."""
        if self.graphs is not None:
            from outrider.engine.cuda.recording_check import checked_choices

            self.choices = checked_choices(
                self.graphs, self.logit_token_ids, self._plain, 4 * self._tolerance
            )

    def follow(self) -> None:
        """Takes part in the passes of rank 0 until it closes. Raises ServiceUnavailable if lost."""
        if self.ranks:
            self.ranks.follow(lambda chunks: self.clear_unsound(chunks, self.forward(chunks)))

    def close(self) -> None:
        """Ends `follow` of the other ranks. No pass may be run afterwards."""
        if self.ranks:
            self.ranks.announce(None)

    @property
    def _tolerance(self) -> float:
        """The effect of rounding on logits, as a `difference`."""
        return 1e-4 if self.dtype == torch.float32 else 0.05

    def _run(self, chunks: Sequence[Chunk]) -> tuple[list[Tensor], Pass]:
        forward_pass = Pass(chunks, self.cache, self.device, self.attention_shapes, self._on_gpu)
        token_ids = [token_id for chunk in chunks for token_id in chunk.token_ids]
        rows = torch.tensor(logit_rows(chunks), dtype=torch.long, device=self.device)
        logits = self.network(torch.tensor(token_ids, device=self.device), forward_pass, rows)
        if forward_pass.captured_layers:
            deliver(chunks, forward_pass.hidden_states)
        return list(logits.split([chunk.num_logits for chunk in chunks])), forward_pass

    @torch.inference_mode()
    def _adopt(self, model: Any, name: str) -> nn.Module:
        """Puts a model on the slot cache and checks that it computes the same there.

        A short random sequence runs through the model's own attention first, then as
        a prompt chunk, a second chunk and a rollback through the slot cache.
        """
        family = f"{name}: the family {self.config.model_type!r}"
        generator = torch.Generator().manual_seed(0)
        length = self.cache.max_length
        ids: list[int] = torch.randint(self.vocab_size, (length,), generator=generator).tolist()
        try:
            *others, last = networks_for(model.config, self.ranks is None, self._on_gpu)
            inputs = torch.tensor([ids], device=self.device)
            with_states = not (self._on_gpu or self.ranks)
            output = model(input_ids=inputs, use_cache=False, output_hidden_states=with_states)
            check_finite(output.logits, self.dtype)
        except Exception as error:
            raise UnsupportedModel(f"{family} cannot run on the slot cache ({error!r})") from error
        for build in others:
            try:
                return self._adopt_as(build, model, ids, output, name)
            except UnsupportedModel as error:
                log.warning("%s: so it runs by transformers' layers", error)
                self.cache = self._probing_cache()
        return self._adopt_as(last, model, ids, output, name)

    def _adopt_as(
        self, build: Build, model: Any, ids: list[int], expected: Any, name: str
    ) -> nn.Module:
        """The network of `build`. Raises UnsupportedModel if it does not give `expected`."""
        family = f"{name}: the family {self.config.model_type!r}"
        try:
            self.network = build(model, self.max_context_length)
            _, forward_pass = self._run([Chunk(0, 0, ids[:1], 1)])  # notes how layers attend
            check_layers(self.config, self.cache.num_layers, family)
            # Weights in int4 or int8 would be found to be rounded.
            if self._is_plain_cpu and not self.is_int4:
                pack_linears(self.network)
                self._prepare_passes(forward_pass)
            actual, windows = self._probe(ids)
        except UnsupportedModel:
            raise
        except Exception as error:
            raise UnsupportedModel(f"{family} cannot run on the slot cache ({error!r})") from error
        found = difference(actual, expected.logits[0])
        if not found < self._tolerance:
            raise UnsupportedModel(
                f"{family} gives other logits on the slot cache than in transformers "
                f"(relative difference {found:.2g})"
            )
        check_boundaries(self.config, windows, self.max_context_length, name, self._trusts_code)
        if states := getattr(expected, "hidden_states", None):
            capture = Capture(tuple(range(self.num_layers)))
            self._run([Chunk(0, 0, ids, capture=capture)])
            self.gives_hidden_states = same_states(capture, states, self._tolerance)
        if self.is_int4:
            pack_in_int4(self.network, self.vocab_size)
            self._prepare_passes(forward_pass)
            self._probe(ids)  # the cache learns its shapes
        return self.network

    def _prepare_passes(self, forward_pass: Pass) -> None:
        """Finds kernel shapes that give the same bits in every pass, if there are any; compiles."""
        if self.batch_invariance is not None:
            kinds, length = attention_kinds(forward_pass), self.max_context_length
            self.attention_shapes, self.batch_invariance = calibrate(
                self.network, kinds, self.dtype, self.thread_counts, length
            )
            self.cache = self._probing_cache()
        compile_network(self.network)

    def _probe(self, ids: list[int]) -> tuple[Tensor, set[int]]:
        """Logits [length, vocab_size] of `ids`, with wrong tokens read and rolled back."""
        half = len(ids) // 2
        first, forward_pass = self._run([Chunk(0, 0, ids[:half], half)])
        self._run([Chunk(0, half, ids[:half])])
        second, _ = self._run([Chunk(0, half, ids[half:], len(ids) - half)])
        return torch.cat([first[0], second[0]]).float(), forward_pass.windows
