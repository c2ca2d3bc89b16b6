#!/bin/sh
# PhiMoE's rotary embedding (longrope) never uses its long factors: beyond
# `original_max_position_embeddings` the scale changes (`long_mscale`), the frequencies stay those of
# `short_factor`, whatever `long_factor` says. Its forward computes the frequencies anew from the
# configuration, without the length, and drops those that `dynamic_rope_update` has just chosen.
# Phi-3, with the same parameters, uses them.
#
# transformers 5.23.0, torch 2.13.0, Python 3.11.
#
# Seen:
#   Phi3: other long factors, other angles at position 99: True
#   Phimoe: other long factors, other angles at position 99: False
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import Phi3Config, PhimoeConfig
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding


def angles(config_class, rotary_class, long_factor, **more):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [long_factor] * 8,
        "original_max_position_embeddings": 40,
        **more,
    }
    config = config_class(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=160,
        original_max_position_embeddings=40,
        rope_parameters=rope,
        pad_token_id=0,
    )
    return rotary_class(config)(torch.zeros(1, 1, 64), torch.arange(100)[None])[0][0, 99]


seen = {
    "Phi3": not torch.equal(
        angles(Phi3Config, Phi3RotaryEmbedding, 2.0), angles(Phi3Config, Phi3RotaryEmbedding, 9.0)
    ),
    "Phimoe": not torch.equal(
        *(
            angles(
                PhimoeConfig, PhimoeRotaryEmbedding, factor, short_mscale=1.0, long_mscale=1.0
            )
            for factor in (2.0, 9.0)
        )
    ),
}
for name, differ in seen.items():
    print(f"{name}: other long factors, other angles at position 99: {differ}")
sys.exit(seen != {"Phi3": True, "Phimoe": False})
PYTHON
