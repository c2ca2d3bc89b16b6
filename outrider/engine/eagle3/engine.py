"""The engine of a feature draft, which drafts several tokens in one call."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from outrider.engine.attention.forward_pass import Pass
from outrider.engine.chunk import Chunk, Features, logit_rows
from outrider.engine.cpu.packed_linear import pack_linears
from outrider.engine.eagle3.checkpoint import read_eagle3
from outrider.engine.eagle3.network import Eagle3Network
from outrider.engine.engine import Engine
from outrider.engine.network import compile_network
from outrider.engine.options import EngineOptions
from outrider.engine.soundness import check_finite
from outrider.errors import ConfigurationError, NotANumber, UnsupportedModel
from outrider.protocol.hidden_states import HiddenStateSpec
from outrider.sampling.recorded_sampling import SamplingSpec
from outrider.sampling.sampler import Choice, rank_tokens

# The last tokens that a draft without a sliding window gets hidden states of, of a longer text.
DEFAULT_WINDOW = 512


class Eagle3Engine(Engine):
    """A feature draft with a slot cache; its chunks have `features`.

    Each token is read with the hidden states of the token before it. So position i of a slot
    belongs to token i + 1, counted from the first token whose hidden states are known.

    Raises:
        ModelNotFound: files cannot be read, or weights do not match the settings.
        UnsupportedModel: the settings are not supported.
        ConfigurationError: a device, length or number of ranks that is not available.
    """

    network: Eagle3Network

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(replace(options, graphs=False))  # on GPUs its passes are not recorded yet

    def _load(self, options: EngineOptions) -> nn.Module:
        if self.ranks or self.is_int4:
            raise ConfigurationError("a feature draft runs in one process, and not in int4")
        trusted = options.trust_remote_code
        model = read_eagle3(options.model, self.device, self.dtype, trusted)
        settings = model.settings
        self.has_draft_vocabulary = True
        self.logit_token_ids = model.token_ids
        self.vocab_size: int = settings.layer_config.vocab_size
        self._follow_config(settings.layer_config, options)
        self.network = Eagle3Network(model, self.max_context_length)
        windows = [window or DEFAULT_WINDOW for window in self.network.windows]
        self.reads_hidden_states = HiddenStateSpec(
            settings.layer_ids, settings.feature_size, max(windows)
        )
        self.feature_width = settings.num_features * settings.feature_size
        if self.is_int8:
            # Half of the memory; int8 rounds more.
            self.network.steps.embedded = self.network.steps.embedded.half()
            # A few of the target's hidden states are huge: int8 would leave the others no bits.
            pack_linears(self.network.fusion)
        if self._is_plain_cpu:
            pack_linears(self.network)
            compile_network(self.network)
        self.cache = self._probing_cache()
        try:
            self._probe_features()
        except ValueError as error:
            raise UnsupportedModel(f"{options.model}: {error}") from error
        return self.network

    @torch.inference_mode()
    def _probe_features(self) -> None:
        """Runs a pass, by which the cache learns its shapes."""
        rows = torch.ones(2, self.feature_width, dtype=self.dtype)
        features = Features(rows, are_own=False)
        chunk = Chunk(0, 0, [0] * min(2, self.cache.max_length), 1, features=features)
        check_finite(self._plain([chunk])[0], self.dtype)

    def _plain(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Logits [num_logits, num_ids] of each chunk; leaves outputs in its features."""
        token_ids = torch.tensor(
            [token_id for chunk in chunks for token_id in chunk.token_ids], device=self.device
        )
        hidden = self._hidden(chunks)
        rows = None
        if len(token_ids) > len(chunks) or not all(chunk.num_logits for chunk in chunks):
            rows = torch.tensor(logit_rows(chunks), dtype=torch.long, device=self.device)
        forward_pass = Pass(chunks, self.cache, self.device, self.attention_shapes, together=False)
        logits, outputs = self.network(token_ids, hidden, forward_pass, rows)
        counts = [chunk.num_logits for chunk in chunks]
        for chunk, own in zip(chunks, outputs.split(counts), strict=True):
            if chunk.features is not None and chunk.num_logits:
                chunk.features.outputs.append(own[-1:])
        return list(logits.split(counts))

    def _hidden(self, chunks: Sequence[Chunk]) -> Tensor:
        """The hidden states that come with the tokens, [num_tokens, hidden_size]."""
        parts = [self._hidden_of(chunk) for chunk in chunks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _with_features(self, chunk: Chunk) -> Chunk:
        if chunk.features is not None:
            return chunk
        shape = len(chunk.token_ids), self.hidden_size
        zeros = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return replace(chunk, features=Features(zeros, are_own=True))

    def _hidden_of(self, chunk: Chunk) -> Tensor:
        features = self._with_features(chunk).features
        assert features is not None
        if features.are_own:
            return features.rows
        fused: Tensor = self.network.fuse(features.rows.to(self.device, self.dtype))
        return fused

    @torch.inference_mode()
    def choose(
        self, chunks: Sequence[Chunk], specs: Sequence[SamplingSpec], num_steps: int = 1
    ) -> list[list[list[Choice]]] | list[Tensor]:
        """Up to `num_steps` choices after each chunk, each read with the draft's own states.

        Returns the logits of `forward` if any chunk has another number of logits than one.
        """
        if any(chunk.num_logits != 1 for chunk in chunks):
            return self.forward(chunks)
        self.cache.copy_for(chunks)
        chosen: list[list[list[Choice]]] = [[] for _ in chunks]
        running = list(enumerate(map(self._with_features, chunks)))
        for _ in range(num_steps):
            began = time.perf_counter_ns()
            logits = self._plain([chunk for _, chunk in running])
            followers = []
            for (number, chunk), row in zip(running, logits, strict=True):
                choices = self._rank(row, specs[number], chunk)
                chosen[number].append(choices)
                if (follower := _follower(chunk, choices)) is not None:
                    followers.append((number, follower))
            lengths = [len(chunk.token_ids) for _, chunk in running]
            self.passes.count(lengths, time.perf_counter_ns() - began)
            running = followers
            if not running:
                break
        return chosen

    def _rank(self, logits: Tensor, spec: SamplingSpec, chunk: Chunk) -> list[Choice]:
        """The choice after a chunk, and its runners-up; one of no probability if it is unsound."""
        ids = self.logit_token_ids[: spec.num_ids]
        assert chunk.features is not None
        index = chunk.end + chunk.features.first_index
        try:
            return rank_tokens(logits[:, : len(ids)], ids, spec.params, index, spec.width)
        except NotANumber:
            return [Choice(0, float("nan"))]


def _follower(chunk: Chunk, choices: list[Choice]) -> Chunk | None:
    """The next token of a chunk's slot, with the states behind the chunk; None: no more."""
    features = chunk.features
    assert features is not None
    if math.isnan(choices[0].prob):
        return None
    token_id = features.follow(choices) if features.follow else choices[0].token_id
    if token_id is None:
        return None
    own = replace(features, rows=features.outputs[-1], are_own=True)
    return Chunk(chunk.slot, chunk.end, [token_id], 1, features=own)
