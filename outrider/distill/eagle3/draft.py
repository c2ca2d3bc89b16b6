"""A draft of one layer that reads hidden states of the target, as it is trained.

The architecture is that of EAGLE-3 (arXiv 2503.01840), and parameters have the names of the
`speculators` checkpoint format, with a norm for each of the hidden states (`fc_norm`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig

from outrider import __version__

_INITIAL_SCALE = 0.3  # of what the layer adds to its input
_INITIAL_NORM = 1.5  # of the last norm, so that the first logits are neither flat nor sharp


def layer_config(target: Any, window: int) -> LlamaConfig:
    """The configuration of a draft's layer, with the sizes of a target's own layers.

    Args:
        target: the configuration of the target's language model.
        window: how many of the last tokens the layer attends to.
    """
    num_heads = target.num_attention_heads
    rope = getattr(target, "rope_parameters", None) or {}
    settings = {
        "vocab_size": target.vocab_size,
        "hidden_size": target.hidden_size,
        "intermediate_size": getattr(target, "intermediate_size", None) or 4 * target.hidden_size,
        "num_hidden_layers": 1,
        "num_attention_heads": num_heads,
        "num_key_value_heads": getattr(target, "num_key_value_heads", None) or num_heads,
        "head_dim": getattr(target, "head_dim", None) or target.hidden_size // num_heads,
        "max_position_embeddings": target.max_position_embeddings,
        "rms_norm_eps": getattr(target, "rms_norm_eps", 1e-5),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": rope.get("rope_theta", 10000.0),
        },
        "sliding_window": window,
        "layer_types": ["sliding_attention"],
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**settings)


class _Norm(nn.RMSNorm):
    """Computes in float32 where products are in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class _Attention(nn.Module):
    """Attention of the drafts of several steps, which is not that of one sequence.

    In step j the input at place i stands j tokens behind the last true hidden state. It attends to
    the true ones up to i - j, and to what the steps between have made of the places since.
    """

    frequencies: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.num_groups = config.num_attention_heads // config.num_key_value_heads
        size, width = 2 * config.hidden_size, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(size, self.num_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(size, width, bias=False)
        self.v_proj = nn.Linear(size, width, bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        self.window = config.sliding_window
        exponents = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        theta = config.rope_parameters["rope_theta"]
        self.register_buffer("frequencies", theta**-exponents, persistent=False)

    def forward(self, inputs: Tensor, earlier: list[tuple[Tensor, Tensor]]) -> Tensor:
        """[batch, length, hidden_size] for inputs [batch, length, 2 * hidden_size].

        Args:
            earlier: keys and values of the steps before; this step's are appended.
        """
        queries, keys, values = (
            self._heads(project(inputs)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries, keys = self._rotated(queries), self._rotated(keys)
        earlier.append((self._repeated(keys), self._repeated(values)))
        attended = self._attend(queries, earlier)
        return self.o_proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _attend(self, queries: Tensor, steps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        *_, length, _ = queries.shape
        step = len(steps) - 1
        true_keys, true_values = steps[0]
        distance = torch.arange(length, device=queries.device)
        distance = distance[:, None] - distance
        mask = (distance >= step) & (distance < self.window)
        scores = [(queries @ true_keys.mT).float().masked_fill(~mask, -torch.inf)]
        later = [
            (keys.roll(step - number, 2), values.roll(step - number, 2))
            for number, (keys, values) in enumerate(steps[1:], start=1)
        ]
        scores += [(queries * keys).sum(dim=-1, keepdim=True).float() for keys, _ in later]
        weights = torch.cat(scores, dim=-1) / self.head_dim**0.5
        weights = weights.softmax(dim=-1).to(true_values.dtype)
        attended: Tensor = weights[..., :length] @ true_values
        for place, (_, values) in enumerate(later, start=length):
            attended = attended + weights[..., place : place + 1] * values
        return attended

    def _heads(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # type: ignore[no-any-return]

    def _repeated(self, states: Tensor) -> Tensor:
        return states.repeat_interleave(self.num_groups, dim=1)

    def _rotated(self, states: Tensor) -> Tensor:
        places = torch.arange(states.shape[2], device=states.device)
        angles: Tensor = places[:, None] * self.frequencies
        cosines, sines = angles.cos(), angles.sin()
        first, second = states.chunk(2, dim=-1)
        return torch.cat(
            [first * cosines - second * sines, second * cosines + first * sines], dim=-1
        )


class _MLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        inner = F.silu(self.gate_proj(states)) * self.up_proj(states)
        return self.down_proj(inner)  # type: ignore[no-any-return]


class _Layer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        size, epsilon = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = _Norm(size, epsilon)
        self.hidden_norm = _Norm(size, epsilon)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _Norm(size, epsilon)
        self.mlp = _MLP(config)

    def forward(
        self, embeddings: Tensor, states: Tensor, earlier: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        inputs = torch.cat([self.input_layernorm(embeddings), self.hidden_norm(states)], dim=-1)
        states = states + self.self_attn(inputs, earlier)
        return states + self.mlp(self.post_attention_layernorm(states))  # type: ignore[no-any-return]


class FeatureDraft(nn.Module):
    """Guesses the token after next from a token's embedding and the hidden states before it.

    Args:
        config: of its layer; see `layer_config`.
        layers: of the target, whose hidden states it reads; numbered as transformers'
            `hidden_states`.
        embedding: [vocab_size, hidden_size], the target's. It is not trained.
        vocabulary: the ids that it proposes, ascending.
    """

    embedding: Tensor
    vocabulary: Tensor

    def __init__(
        self, config: LlamaConfig, layers: Sequence[int], embedding: Tensor, vocabulary: list[int]
    ) -> None:
        super().__init__()
        size, epsilon = config.hidden_size, config.rms_norm_eps
        self.config, self.hidden_layers = config, tuple(layers)
        self.fc = nn.Linear(len(layers) * size, size, bias=False)
        self.fc_norm = nn.ModuleList(_Norm(size, epsilon) for _ in layers)
        self.layers = nn.ModuleList([_Layer(config)])
        self.norm = _Norm(size, epsilon)
        self.lm_head = nn.Linear(size, len(vocabulary), bias=False)
        self.register_buffer("embedding", embedding.float(), persistent=False)
        self.register_buffer("vocabulary", torch.tensor(vocabulary), persistent=False)
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Begins near the last hidden state under the target's own embedding as head."""
        size = self.config.hidden_size
        self.fc.weight.mul_(0.1)
        self.fc.weight[:, -size:] += torch.eye(size)
        layer: Any = self.layers[0]
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.mul_(_INITIAL_SCALE)
        self.norm.weight.fill_(_INITIAL_NORM)
        self.lm_head.weight.copy_(self.embedding[self.vocabulary])

    @property
    def device(self) -> torch.device:
        return self.fc.weight.device

    def unrolled(self, hidden_states: Tensor, token_ids: Tensor, num_steps: int) -> list[Tensor]:
        """The outputs of `num_steps` steps of drafting, [batch, length, hidden_size] each.

        At place i, step j has drafted j tokens from the hidden states of place i - j, with true
        tokens in place of its own, and its output guesses the token after `token_ids[i]`.

        Args:
            hidden_states: [batch, length, num_layers * hidden_size], the target's at the place
                before each token.
            token_ids: [batch, length].
        """
        parts = hidden_states.split(self.config.hidden_size, dim=-1)
        normed = [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)]
        states = self.fc(torch.cat(normed, dim=-1))
        embeddings = F.embedding(token_ids, self.embedding)
        outputs: list[Tensor] = []
        earlier: list[tuple[Tensor, Tensor]] = []
        for _ in range(num_steps):
            states = self.layers[0](embeddings, states, earlier)
            outputs.append(states)
            states = states.roll(1, 1)
        return outputs

    def logits(self, outputs: Tensor) -> Tensor:
        """[..., num_ids] for outputs [..., hidden_size]."""
        return self.lm_head(self.norm(outputs))  # type: ignore[no-any-return]

    def save(self, folder: Path, target: str) -> None:
        """Writes a complete folder in the format of `speculators`, but for the tokenizer.

        Args:
            target: name of the target, for whoever loads the folder elsewhere.
        """
        embedding = {"embed_tokens.weight": self.embedding}
        save_file(self.tensors() | half(embedding), folder / "model.safetensors")
        write_config(folder, self.config, self.hidden_layers, len(self.vocabulary), target)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the checkpoint but the embedding, which is the target's."""
        weights = half({name: p.detach() for name, p in self.named_parameters()})
        return weights | vocabulary_maps(self.vocabulary.cpu(), self.config.vocab_size)


def half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies in float16, on the CPU."""
    return {name: weight.cpu().half().contiguous() for name, weight in weights.items()}


def vocabulary_maps(vocabulary: Tensor, vocab_size: int) -> dict[str, Tensor]:
    """What maps draft ids to target ids: `d2t` [num_ids] holds differences, `t2d` [vocab_size]
    whether the draft has an id."""
    is_known = torch.zeros(vocab_size, dtype=torch.bool)
    is_known[vocabulary] = True
    return {"d2t": vocabulary - torch.arange(len(vocabulary)), "t2d": is_known}


def write_config(
    folder: Path, layer: LlamaConfig, layers: Sequence[int], num_ids: int, target: str
) -> None:
    """Writes the config.json of a feature draft."""
    proposal = {"proposal_type": "greedy", "speculative_tokens": 4}
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "draft_vocab_size": num_ids,
        "eagle_aux_hidden_state_layer_ids": list(layers),
        "fc_norm": True,
        "norm_before_fc": False,
        "norm_before_residual": False,
        "norm_output": False,
        "target_hidden_size": layer.hidden_size,
        "transformer_layer_config": layer.to_diff_dict(),
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": target, "architectures": []},
        },
        "outrider_version": __version__,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str) + "\n")
