"""Reads checkpoints of EAGLE-3 drafts, in the layout of `speculators` and in the original one.

`speculators` (a library of vLLM) has its own settings at the top level of config.json, and those of
the decoder layers in `transformer_layer_config`. The original layout is a Llama configuration with
a `draft_vocab_size`, and its layer is named `midlayer`; other weights have the same names. `d2t`
holds offsets: the token of row i of the head is i + d2t[i].
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig

from outrider.engine.attention.rope import rope_of
from outrider.engine.eagle3.decoder_layer import (
    DecoderLayer,
    Norm,
    RotaryFrequencies,
    rotary_frequencies,
)
from outrider.engine.loading.model_folder import read_settings, refuse_pickles, told
from outrider.engine.loading.weights import check_complete, leave_file
from outrider.errors import ModelNotFound, UnsupportedModel

_DEFAULT_NUM_FEATURES = 3  # layers whose hidden states are read

_FAMILIES = ("llama", "qwen3")


@dataclass(frozen=True, slots=True)
class Eagle3Settings:
    """The architecture of a draft.

    Args:
        layer_config: transformers' configuration of the decoder layers.
        layer_ids: the target's layers whose hidden states it reads; empty: not specified.
        feature_size: the target's hidden size.
        norms_fused: whether an RMS norm is applied to all hidden states of a token together,
            before they are fused.
        norms_each: whether one is applied to those of each layer.
        residual_is_normed: whether the first layer's residual is its normalized input.
        output_is_normed: whether the draft's own hidden states are normalized before it reads them.
    """

    layer_config: Any
    draft_vocab_size: int
    layer_ids: tuple[int, ...]
    feature_size: int
    norms_fused: bool = False
    norms_each: bool = False
    residual_is_normed: bool = False
    output_is_normed: bool = False

    @property
    def num_features(self) -> int:
        return len(self.layer_ids) or _DEFAULT_NUM_FEATURES


class Eagle3Model(nn.Module):
    """The weights of a checkpoint, under its names."""

    def __init__(self, settings: Eagle3Settings) -> None:
        super().__init__()
        config = settings.layer_config
        size, eps = config.hidden_size, config.rms_norm_eps
        width = settings.num_features * settings.feature_size
        self.settings = settings
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.input_norm = Norm(width, eps) if settings.norms_fused else None
        norms = range(settings.num_features if settings.norms_each else 0)
        self.fc_norm = nn.ModuleList(Norm(settings.feature_size, eps) for _ in norms)
        self.fc = nn.Linear(width, size, bias=False)
        numbers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(DecoderLayer(config, is_first=i == 0) for i in numbers)
        self.norm = Norm(size, eps)
        self.lm_head = nn.Linear(size, settings.draft_vocab_size, bias=False)
        self.rotary: RotaryFrequencies
        self.token_ids: Tensor
        """For each row of the head, its token in the target's vocabulary."""


def read_eagle3(
    folder: str, device: torch.device, dtype: torch.dtype, trust_remote_code: bool = False
) -> Eagle3Model:
    """Loads the draft in `folder` for inference.

    Raises:
        ModelNotFound: files cannot be read, or weights do not match the settings.
        UnsupportedModel: the settings are not supported, or weights are pickled.
    """
    settings = _read(folder)
    rope = rope_of(settings.layer_config)
    if rope.kind:
        raise UnsupportedModel(f"{folder}: a feature draft with {rope.kind} rotary embeddings")
    weights = _read_weights(folder, dtype, trust_remote_code)
    try:
        with torch.device("meta"):
            model = Eagle3Model(settings)
        model.rotary = rotary_frequencies(settings.layer_config)
    except Exception as error:
        raise ModelNotFound(f"cannot read {folder}/config.json: {told(error)}") from error
    token_ids = _token_ids(folder, settings, weights)
    _check(folder, model, weights)
    model.load_state_dict(weights, assign=True)
    leave_file(model)
    # The engine's logits are in the order of their tokens.
    token_ids, order = token_ids.sort()
    if not torch.equal(order, torch.arange(len(order))):
        model.lm_head.weight = nn.Parameter(model.lm_head.weight[order])
    model.register_buffer("token_ids", token_ids, persistent=False)
    return model.eval().requires_grad_(False).to(device)


def _read(folder: str) -> Eagle3Settings:
    """The settings of either layout. Raises ModelNotFound, UnsupportedModel."""
    settings = read_settings(folder)
    layer = settings.get("transformer_layer_config", settings)
    kind = layer.get("model_type", "llama") if isinstance(layer, dict) else None
    if kind not in _FAMILIES:
        raise UnsupportedModel(f"{folder}: a feature draft with layers of the family {kind!r}")
    names = {"speculators_config", "architectures", "auto_map", "transformers_version"}
    values = {key: value for key, value in layer.items() if key not in names}
    try:
        config = AutoConfig.for_model(**{**values, "model_type": kind})
    except Exception as error:
        raise ModelNotFound(f"cannot read {folder}/config.json: {told(error)}") from error
    if config.hidden_act != "silu" or getattr(config, "mlp_bias", False):
        raise UnsupportedModel(f"{folder}: a feature draft with {config.hidden_act} or MLP biases")
    own = settings.get("eagle_config") or {}
    layer_ids = settings.get(
        "eagle_aux_hidden_state_layer_ids", own.get("eagle_aux_hidden_state_layer_ids")
    )
    return Eagle3Settings(
        config,
        draft_vocab_size=settings.get("draft_vocab_size") or config.vocab_size,
        layer_ids=tuple(layer_ids or ()),
        feature_size=settings.get("target_hidden_size") or config.hidden_size,
        norms_fused=bool(settings.get("norm_before_fc")),
        norms_each=bool(settings.get("fc_norm")),
        residual_is_normed=bool(settings.get("norm_before_residual")),
        output_is_normed=bool(settings.get("norm_output")),
    )


def _read_weights(folder: str, dtype: torch.dtype, trust_remote_code: bool) -> dict[str, Tensor]:
    """All weights of the folder by the names of `Eagle3Model`, and d2t and t2d."""
    files = sorted(Path(folder).glob("*.safetensors"))
    weights: dict[str, Tensor] = {}
    try:
        if files or not trust_remote_code:
            refuse_pickles(folder)
            for file in files:
                weights |= load_file(file)
        else:
            for file in sorted(Path(folder).glob("*.bin")):
                weights |= torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelNotFound(f"cannot load the model {folder!r}: {told(error)}") from error
    return {
        name.replace("midlayer.", "layers.0."): weight.to(dtype)
        if weight.is_floating_point()
        else weight
        for name, weight in weights.items()
    }


def _token_ids(folder: str, settings: Eagle3Settings, weights: dict[str, Tensor]) -> Tensor:
    """The token of each row of the head; takes d2t and t2d out of `weights`."""
    offsets, mask = weights.pop("d2t", None), weights.pop("t2d", None)
    rows = torch.arange(settings.draft_vocab_size)
    if offsets is None:
        if settings.draft_vocab_size != settings.layer_config.vocab_size:
            raise ModelNotFound(f"{folder} lacks d2t, the tokens of its draft vocabulary")
        return rows
    if offsets.shape != rows.shape:
        raise ModelNotFound(f"{folder}: d2t has {len(offsets)} entries instead of {len(rows)}")
    token_ids = rows + offsets.long()
    in_order = token_ids.sort().values
    is_valid = in_order[0] >= 0 and in_order[-1] < settings.layer_config.vocab_size
    if not is_valid or (in_order.diff() == 0).any():
        raise ModelNotFound(f"{folder}: d2t names tokens twice, or outside of the vocabulary")
    if mask is not None and not torch.equal(mask.bool().nonzero()[:, 0], in_order):
        raise ModelNotFound(f"{folder}: d2t and t2d name different tokens")
    return token_ids


def _check(folder: str, model: Eagle3Model, weights: dict[str, Tensor]) -> None:
    """Refuses weights that are missing, surplus or of another shape; drops those not needed."""
    for name in [name for name in weights if name.startswith("verifier_")]:
        del weights[name]
    expected = {name: weight.shape for name, weight in model.state_dict().items()}
    if "embed_tokens.weight" not in weights:
        raise ModelNotFound(
            f"{folder} lacks embed_tokens.weight: add the target's embeddings to its weights"
        )
    both = [name for name in expected if name in weights]
    faults: dict[str, Collection[Any]] = {
        "missing_keys": [name for name in expected if name not in weights],
        "unexpected_keys": [name for name in weights if name not in expected],
        "mismatched_keys": [
            (name, weights[name].shape, expected[name])
            for name in both
            if weights[name].shape != expected[name]
        ],
    }
    check_complete(folder, faults)
