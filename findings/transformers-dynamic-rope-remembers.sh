#!/bin/sh
# With dynamic NTK scaling the logits of a text depend on which texts the model has read before: a
# longer one leaves its frequencies behind, and a shorter text that is still beyond the original length
# gets them, until a text within the original length resets them. The same input gives other logits,
# in the same process, without any cache being passed.
#
# transformers 5.23.0, torch 2.13.0, Python 3.11.
#
# Seen:
#   the same text again: 0.0
#   the same text after a longer one: more than 0.01
#   the same text after a short one: 0.0
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=40,
    initializer_range=0.3,
    rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
)
model = LlamaForCausalLM(config).eval()
ids = torch.randint(100, (1, 150))


@torch.no_grad()
def logits(length):
    return model(ids[:, :length], use_cache=False).logits


first = logits(60)
again = float((logits(60) - first).abs().max())
logits(150)
after_longer = float((logits(60) - first).abs().max())
logits(20)
after_short = float((logits(60) - first).abs().max())
print("the same text again:", again)
print("the same text after a longer one:", after_longer)
print("the same text after a short one:", after_short)
sys.exit(not (again == 0.0 and after_longer > 0.01 and after_short == 0.0))
PYTHON
