"""What a feature draft computes while it trains, against plain step by step drafting."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from outrider.distill.eagle3.draft import FeatureDraft, layer_config
from outrider.engine.chunk import Chunk, Features
from outrider.engine.eagle3.engine import Eagle3Engine
from outrider.engine.options import EngineOptions
from tests.support.models.tiny_tokenizers import make_tokenizer

LENGTH = 12
NUM_STEPS = 4


def small_draft(window: int = 64) -> FeatureDraft:
    torch.manual_seed(0)
    target = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
    )
    draft = FeatureDraft(
        layer_config(target, window), (1, 3, 5), torch.randn(40, 32), list(range(0, 40, 2))
    )
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return draft


def drafted(
    draft: FeatureDraft, states: Tensor, token_ids: Tensor, place: int, step: int
) -> Tensor:
    """The output at `place` after `step` tokens drafted, computed token by token with a cache of
    keys and values, by transformers' rotary embedding."""
    layer = draft.layers[0]
    attention, config = layer.self_attn, draft.config
    rotary = LlamaRotaryEmbedding(config)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    output = torch.zeros(config.hidden_size)
    parts = states.split(config.hidden_size, dim=-1)
    fused = draft.fc(
        torch.cat([norm(part) for norm, part in zip(draft.fc_norm, parts, strict=True)], dim=-1)
    )
    for now in range(place + 1):
        hidden = fused[now] if now <= place - step else output
        embedding = draft.embedding[token_ids[now]]
        inputs = torch.cat([layer.input_layernorm(embedding), layer.hidden_norm(hidden)])
        query, key, value = (
            project(inputs).view(1, -1, 1, config.head_dim)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        cosines, sines = rotary(value, torch.tensor([[now]]))
        query, key = apply_rotary_pos_emb(query, key, cosines, sines)
        keys.append(key)
        values.append(value)
        window = slice(max(0, now + 1 - config.sliding_window), None)
        attended = F.scaled_dot_product_attention(
            query, torch.cat(keys[window], 2), torch.cat(values[window], 2), enable_gqa=True
        )
        hidden = hidden + attention.o_proj(attended.flatten())
        output = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return output


@pytest.mark.parametrize("window", [64, 5])
@torch.inference_mode()
def test_steps_unrolled_in_training_are_those_of_drafting(window: int) -> None:
    draft = small_draft(window)
    states, token_ids = torch.randn(2, LENGTH, 96), torch.randint(40, (2, LENGTH))
    outputs = draft.unrolled(states, token_ids, NUM_STEPS)
    for step, output in enumerate(outputs):
        for place in range(step, LENGTH):
            for row in range(2):
                expected = drafted(draft, states[row], token_ids[row], place, step)
                assert torch.allclose(output[row, place], expected, atol=1e-4), (step, place)


@torch.inference_mode()
def test_a_served_draft_computes_what_was_trained(tmp_path: Path) -> None:
    draft = small_draft(window=5)
    draft.save(tmp_path, "some/target")
    make_tokenizer(tmp_path)
    options = EngineOptions(
        str(tmp_path), "cpu", "float32", slots=1, max_context_length=64, batch_invariant=False
    )
    engine = Eagle3Engine(options)
    assert engine.logit_token_ids.tolist() == draft.vocabulary.tolist()
    states = torch.randn(1, LENGTH, 96)
    token_ids = torch.randint(40, (1, LENGTH))
    outputs = draft.unrolled(states, token_ids, NUM_STEPS)
    first = LENGTH - NUM_STEPS + 1
    features = Features(states[0, :first], are_own=False)
    chunk = Chunk(0, 0, token_ids[0, :first].tolist(), 1, features=features)
    for step in range(NUM_STEPS):
        [logits] = engine.forward([chunk])
        place = first - 1 + step
        expected = draft.logits(outputs[step][0, place])
        torch.testing.assert_close(logits[0], expected, atol=0.02, rtol=0.01)
        features = Features(features.outputs[-1], are_own=True)
        if place + 1 < LENGTH:
            chunk = Chunk(0, place + 1, [int(token_ids[0, place + 1])], 1, features=features)


def test_a_saved_draft_has_what_speculators_expects(tmp_path: Path) -> None:
    draft = small_draft()
    draft.save(tmp_path, "some/target")
    weights = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    assert weights["fc.weight"].shape == (32, 96)
    assert weights["layers.0.self_attn.q_proj.weight"].shape == (32, 64)
    assert weights["lm_head.weight"].shape == (20, 32)
    assert weights["embed_tokens.weight"].shape == (40, 32)
    ids = torch.arange(20) + weights["d2t"]
    assert ids.tolist() == list(range(0, 40, 2))
    assert weights["t2d"].nonzero().flatten().tolist() == ids.tolist()
    assert config["speculators_model_type"] == "eagle3"
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 3, 5]
    assert config["transformer_layer_config"]["num_hidden_layers"] == 1
    assert config["transformer_layer_config"]["model_type"] == "llama"
    assert config["speculators_config"]["verifier"]["name_or_path"] == "some/target"
