"""Which checkpoints are loaded, and what is said of the others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig

from outrider.engine.loading.model_folder import eos_token_ids, settings_not_applied
from outrider.engine.loading.weights import load_model
from outrider.errors import ModelNotFound, OutriderError, UnsupportedModel

Weights = dict[str, Tensor]

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_models: Callable[..., Path], tmp_path: Path) -> Path:
    """A llama of two layers and an output layer of its own, to be spoiled."""
    return Path(shutil.copytree(tiny_models("llama"), tmp_path / "model"))


def load(folder: Path, **settings: Any) -> Any:
    return load_model(str(folder), torch.device("cpu"), torch.float32, **settings)


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def change_config(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(OutriderError) as raised:
        load(folder, **settings)
    assert isinstance(raised.value, ModelNotFound | UnsupportedModel)
    assert "\n" not in raised.value.message
    assert str(folder) in raised.value.message
    return raised.value.message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: {k: w[k] for k in w if k != "lm_head.weight"}, "missing: lm_head.weight"),
        (lambda w: {k: w[k] for k in w if k != UP}, f"missing: {UP}"),
        (
            lambda w: w | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)},
            "not in the model: model.layers.0.self_attn.q_proj.bias",
        ),
        (lambda w: w | {UP: w[UP][:100].clone()}, f"shape: {UP} [100, 64] instead of [128, 64]"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    folder: Path, change: Callable[[Weights], Weights], expected: str
) -> None:
    change_weights(folder, change)
    assert expected in refusal(folder)


def test_keys_under_a_foreign_prefix_are_named(folder: Path) -> None:
    change_weights(folder, lambda weights: {f"student.{key}": weights[key] for key in weights})
    message = refusal(folder)
    assert "missing: lm_head.weight, model.embed_tokens.weight" in message
    assert "not in the model: student.lm_head.weight" in message
    assert "18 more" in message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_hidden_layers": 3}, "missing: model.layers.2."),
        ({"num_hidden_layers": 1}, "not in the model: model.layers.1."),
        ({"vocab_size": 200}, "lm_head.weight [300, 64] instead of [200, 64]"),
        ({"intermediate_size": 96}, "down_proj.weight [64, 128] instead of [64, 96]"),
        ({"hidden_act": "none such"}, "none such"),
        ({"model_type": "none such"}, "none such"),
        ({"num_attention_heads": 3}, "not a multiple of the number of attention heads"),
        (
            {"rope_parameters": {"rope_type": "none such", "rope_theta": 1.0}},
            "KeyError: 'none such'",
        ),
    ],
)
def test_a_config_of_another_model_is_refused(
    folder: Path, settings: dict[str, Any], expected: str
) -> None:
    change_config(folder, **settings)
    assert expected in refusal(folder)


def test_tied_weights_may_be_stored_once(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    change_weights(folder, lambda w: {k: w[k] for k in w if k != "lm_head.weight"})
    model = load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_old_checkpoints_store_beside_weights_is_left_out(folder: Path) -> None:
    stored = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.0.attn.masked_bias": torch.ones(1),
    }
    change_weights(folder, lambda weights: weights | stored)
    load(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8"])
def test_quantised_weights_are_refused_by_name(folder: Path, method: str) -> None:
    change_config(folder, quantization_config={"quant_method": method, "bits": 4})
    assert f"quantised ({method})" in refusal(folder)


def test_weights_that_mlx_quantised_are_refused_by_name(folder: Path) -> None:
    change_config(folder, quantization={"group_size": 64, "bits": 4})
    assert "is quantised" in refusal(folder)


@pytest.mark.parametrize(("dtype", "kind"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_weights_in_eight_bits_are_quantised_whatever_the_config_says(
    folder: Path, dtype: torch.dtype, kind: str
) -> None:
    change_weights(folder, lambda weights: weights | {UP: weights[UP].to(dtype)})
    assert f"quantised ({UP} is {kind})" in refusal(folder)


def test_pointers_of_git_lfs_are_told(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "`git lfs pull`" in refusal(folder)


def test_weights_may_be_in_several_files_and_none_of_them_missing(folder: Path) -> None:
    model = load(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    loaded = load(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    shards[1].unlink()
    assert shards[1].name in refusal(folder)


def test_pickles_are_read_only_on_request(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "pickles (pytorch_model.bin)" in refusal(folder)
    load(folder, trust_remote_code=True)


def test_code_of_the_folder_runs_only_on_request(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'mine'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    brought = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    change_config(folder, model_type="mine", auto_map=brought)
    assert "comes with code (mine.py)" in refusal(folder)
    assert type(load(folder, trust_remote_code=True)).__name__ == "Model"


def test_of_a_known_family_the_folders_code_is_not_run(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('it runs')")
    change_config(folder, auto_map={"AutoModelForCausalLM": "mine.Model"})
    assert type(load(folder)).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (2, 0, (2, 0)),
        ([2, 7], [7, 5], (2, 7, 5)),
        (None, 7, (7,)),
        (7, None, (7,)),
        (None, None, (2,)),  # the family's
        ([3, 300], -1, (3,)),  # others are no tokens of this model
    ],
)
def test_texts_end_at_what_either_file_names(
    folder: Path, generation: Any, config: Any, expected: tuple[int, ...]
) -> None:
    change_config(folder, eos_token_id=config)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    assert eos_token_ids(str(folder), LlamaConfig(), vocab_size=300) == expected


@pytest.mark.parametrize("strange", ["2", [[3]], 2.5])
def test_an_end_that_is_no_token_is_refused(folder: Path, strange: Any) -> None:
    change_config(folder, eos_token_id=strange)
    with pytest.raises(ModelNotFound, match="eos_token_id"):
        eos_token_ids(str(folder), LlamaConfig(), vocab_size=300)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"repetition_penalty": 1.05, "temperature": 0.6}, ["repetition_penalty 1.05"]),
        ({"suppress_tokens": [7], "forced_bos_token_id": 0}, None),
        ({"repetition_penalty": 1.0, "num_beams": 1, "suppress_tokens": []}, []),
        ({"min_new_tokens": 0, "bad_words_ids": None, "eos_token_id": 2}, []),
    ],
)
def test_settings_that_are_not_applied_are_named(
    folder: Path, settings: dict[str, Any], expected: list[str] | None
) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))
    everything = [f"{name} {value}" for name, value in settings.items()]
    assert settings_not_applied(str(folder)) == (everything if expected is None else expected)


@pytest.mark.parametrize("family", ["t5", "qwen2_vl", "modernbert"])
def test_a_family_without_a_causal_language_model_is_refused(folder: Path, family: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    assert f"of {family!r} transformers has no causal language model" in refusal(folder)


def test_texts_end_as_config_says_where_there_is_no_other_file(folder: Path) -> None:
    change_config(folder, text_config={"eos_token_id": 9})
    (folder / "generation_config.json").unlink()
    assert eos_token_ids(str(folder), LlamaConfig(), vocab_size=300) == (2, 9)


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter" in refusal(folder)


@pytest.mark.parametrize("content", ["{broken", "[]", "{}", '{"model_type": "llama"'])
def test_a_broken_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json" in refusal(folder)


def test_folders_without_a_model_are_told_apart(folder: Path, tmp_path: Path) -> None:
    assert "there is no folder" in refusal(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "model.gguf").touch()
    assert "model.gguf" in refusal(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(folder)
