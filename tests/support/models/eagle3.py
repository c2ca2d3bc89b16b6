"""Tiny seeded EAGLE-3 drafts, in both layouts, for the tiny models."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.models.tiny_tokenizers import make_tokenizer

DEFAULTS: dict[str, Any] = {
    "kind": "llama",
    "size": 64,  # as the tiny models have
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "num_layers": 1,
    "num_ids": 100,
    "layer_ids": [0, 1],
    "vocab_size": None,  # of the tokenizer
    "scale": 0.3,
    "dtype": torch.float32,
}
FLAGS = ("norm_before_residual", "fc_norm", "norm_before_fc", "norm_output")


def make_eagle3(
    folder: Path,
    seed: int = 0,
    is_original: bool = False,
    flags: tuple[str, ...] = ("fc_norm",),
    window: int | None = None,
    **settings: Any,
) -> Path:
    """Saves a draft and a tokenizer. Its weights are functions of their names and the seed.

    Args:
        is_original: in the original layout; else in that of speculators.
        flags: the settings in FLAGS that are true.
        window: the layers' sliding window.
    """
    s = {**DEFAULTS, **settings}
    num_tokens = make_tokenizer(folder)
    vocab_size = s["vocab_size"] or num_tokens
    weights = _weights(s, vocab_size, seed, flags)
    layer = {
        "model_type": s["kind"],
        "vocab_size": vocab_size,
        "hidden_size": s["size"],
        "intermediate_size": s["intermediate_size"],
        "num_hidden_layers": s["num_layers"],
        "num_attention_heads": s["num_heads"],
        "num_key_value_heads": s["num_kv_heads"],
        "head_dim": s["head_dim"],
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "eos_token_id": 2,
    }
    if window is not None:
        layer |= {"sliding_window": window, "layer_types": ["sliding_attention"] * s["num_layers"]}
    common = {"draft_vocab_size": s["num_ids"], **dict.fromkeys(flags, True)}
    if is_original:
        config = {**layer, **common, "architectures": ["LlamaForCausalLMEagle3"]}
        config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": s["layer_ids"]}
        weights = {name.replace("layers.0.", "midlayer."): w for name, w in weights.items()}
    else:
        config = {
            **common,
            "architectures": ["Eagle3DraftModel"],
            "speculators_model_type": "eagle3",
            "speculators_version": "0.9.0",
            "speculators_config": {
                "algorithm": "eagle3",
                "default_proposal_method": "greedy",
                "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
                "verifier": {"name_or_path": None, "architectures": ["LlamaForCausalLM"]},
            },
            "transformer_layer_config": layer,
            "eagle_aux_hidden_state_layer_ids": s["layer_ids"],
        }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return folder


def _weights(
    s: dict[str, Any], vocab_size: int, seed: int, flags: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    size, width = s["size"], s["size"] * len(s["layer_ids"])
    heads, kv_heads = s["num_heads"] * s["head_dim"], s["num_kv_heads"] * s["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (vocab_size, size),
        "fc.weight": (size, width),
        "norm.weight": (size,),
        "lm_head.weight": (s["num_ids"], size),
        "layers.0.hidden_norm.weight": (size,),
    }
    if "fc_norm" in flags:
        shapes |= {f"fc_norm.{i}.weight": (size,) for i in range(len(s["layer_ids"]))}
    if "norm_before_fc" in flags:
        shapes["input_norm.weight"] = (width,)
    for number in range(s["num_layers"]):
        own = size if number else 2 * size
        layer = {
            "self_attn.q_proj.weight": (heads, own),
            "self_attn.k_proj.weight": (kv_heads, own),
            "self_attn.v_proj.weight": (kv_heads, own),
            "self_attn.o_proj.weight": (size, heads),
            "mlp.gate_proj.weight": (s["intermediate_size"], size),
            "mlp.up_proj.weight": (s["intermediate_size"], size),
            "mlp.down_proj.weight": (size, s["intermediate_size"]),
            "input_layernorm.weight": (size,),
            "post_attention_layernorm.weight": (size,),
        }
        if s["kind"] == "qwen3":
            layer |= {f"self_attn.{n}_norm.weight": (s["head_dim"],) for n in "qk"}
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: (
            (1 + 0.1 * torch.randn(shape, generator=generator))
            if len(shape) == 1
            else s["scale"] * torch.randn(shape, generator=generator)
        ).to(s["dtype"])
        for name, shape in sorted(shapes.items())
    }
    chosen = torch.randperm(vocab_size, generator=generator)[: s["num_ids"]].sort().values
    mask = torch.zeros(vocab_size, dtype=torch.bool)
    mask[chosen] = True
    return {**weights, "d2t": chosen - torch.arange(s["num_ids"]), "t2d": mask}
